"""Reading files: the limits, the errors a person can act on, the cache, and the drawn samples end to end."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import pytest
from PIL import Image

from sagalog.agents.invoices import check, drawing, ocr, reading
from sagalog.agents.invoices.errors import (
    DocumentTooLarge,
    InvoiceError,
    ReadingTimeout,
    UnreadableDocument,
    UnsupportedDocument,
)
from sagalog.agents.invoices.orders import sample_orders, suggest_orders
from sagalog.agents.invoices.reading import Limits, read_document


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def picture(path: Path, size: tuple[int, int] = (300, 200)) -> Path:
    Image.new("L", size, 255).save(path)
    return path


def pdf(path: Path, pages: int = 1) -> Path:
    document = pdfium.PdfDocument.new()
    for _ in range(pages):
        document.new_page(300, 400)
    document.save(path)
    return path


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", UnreadableDocument, "empty"),
        (b"plain text, no image", UnsupportedDocument, "neither a PDF nor an image"),
        (b"%PDF-1.7 and then rubbish", UnreadableDocument, "not a readable PDF"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, UnreadableDocument, "image"),
    ],
)
def test_broken_files_are_named_with_a_remedy(
    tmp_path: Path, data: bytes, error: type[InvoiceError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_document(write(tmp_path / "file", data))


def test_a_missing_file_is_an_invoice_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableDocument, match="check that the file is there"):
        read_document(tmp_path / "none.pdf")


def test_an_image_cut_off_in_the_middle(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png", (900, 900)).read_bytes()
    with pytest.raises(UnreadableDocument, match="image"):
        read_document(write(tmp_path / "b.png", whole[: len(whole) // 2]))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(bytes_max=10), "larger than 10 bytes"),
        (Limits(pixels_max=1000), "300 x 200 pixels"),
    ],
)
def test_images_beyond_a_limit(tmp_path: Path, limits: Limits, message: str) -> None:
    with pytest.raises(DocumentTooLarge, match=message):
        read_document(picture(tmp_path / "a.png"), limits)


def test_pdfs_beyond_a_limit(tmp_path: Path) -> None:
    with pytest.raises(DocumentTooLarge, match="3 pages, more than 2"):
        read_document(pdf(tmp_path / "a.pdf", 3), Limits(pages_max=2))
    with pytest.raises(DocumentTooLarge, match="too large to render"):
        read_document(pdf(tmp_path / "b.pdf"), Limits(pixels_max=1000))


def test_the_time_allowed_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ReadingTimeout, match="time allowed"):
        read_document(picture(tmp_path / "a.png"), Limits(seconds_max=0.0))


def test_an_empty_page_reads_as_nothing_and_is_refused(tmp_path: Path) -> None:
    outcome = check.check_file(picture(tmp_path / "a.png"))
    assert outcome.verdict is not None and outcome.verdict.decision == "review"


def test_the_same_content_is_recognised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(image: object, deadline: float) -> tuple[()]:
        calls.append(deadline)
        return ()

    monkeypatch.setattr(reading.ocr, "recognise", count)
    data = picture(tmp_path / "a.png", (311, 207)).read_bytes()
    first = read_document(tmp_path / "a.png")
    assert read_document(write(tmp_path / "copy.png", data)) is first
    assert len(calls) == 1
    for width in range(reading.CACHED_READINGS_MAX):
        read_document(picture(tmp_path / "other.png", (50 + width, 40)))
    read_document(tmp_path / "a.png")
    assert len(calls) == reading.CACHED_READINGS_MAX + 2, "the cache must be bounded"


def test_a_turned_page_is_deskewed() -> None:
    page = np.asarray(drawing.draw(drawing.SAMPLE_SPECS[0]).rotate(2, fillcolor=255).convert("RGB"), dtype=np.uint8)
    words = ocr.recognise(page, time.monotonic() + 60)
    label = next(w for w in words if "Net" in w.text)
    value = next(w for w in words if w.box.x0 > 700 and abs(w.box.middle - label.box.middle) < 8)
    assert "529.20" in value.text


def test_the_samples_are_redrawn_byte_for_byte(tmp_path: Path) -> None:
    drawing.redraw_samples(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in drawing.SAMPLES.iterdir())
    assert len([name for name in names if name.endswith(".png")]) >= 14
    for name in names:
        same = (tmp_path / name).read_bytes() == (drawing.SAMPLES / name).read_bytes()
        assert same, f"{name} differs; redraw it: python -m sagalog.agents.invoices.drawing"


# One of each layout and fault is read here; the integration tests read variants that nobody has seen.
@pytest.mark.parametrize("name", ["falcon-office", "lindental-tools", "pinewood-licences", "sakura-instruments"])
def test_a_good_sample_goes_straight_through_and_finds_its_order(name: str) -> None:
    expected = json.loads((drawing.SAMPLES / "expected.json").read_text("utf-8"))[f"{name}.png"]
    outcome = check.check_file(drawing.SAMPLES / f"{name}.png")
    assert outcome.invoice is not None and outcome.verdict is not None
    invoice = outcome.invoice
    assert outcome.verdict.accepted, outcome.verdict
    assert invoice.amount == Decimal(expected["amount"])
    assert (invoice.invoice_number, str(invoice.date), invoice.currency) == (
        expected["invoice_number"],
        expected["date"],
        expected["currency"],
    )
    best = suggest_orders(invoice, sample_orders())[0]
    assert best.reference == next(s.order for s in drawing.SAMPLE_SPECS if s.name == name)


@pytest.mark.parametrize("name", ["lindental-total-wrong", "laurier-smudged", "molenaar-no-date", "olivo-lines-wrong"])
def test_a_faulty_sample_is_refused(name: str) -> None:
    outcome = check.check_file(drawing.SAMPLES / f"{name}.png")
    assert outcome.verdict is not None
    assert outcome.verdict.decision == "review" and outcome.verdict.reasons


def test_the_command_line_tells_its_outcome_by_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, faulty = (str(drawing.SAMPLES / f"{n}.png") for n in ("falcon-office", "molenaar-no-date"))
    assert check.main([good, "--json"]) == check.EXIT_ACCEPTED
    line = json.loads(capsys.readouterr().out)
    assert (line["verdict"]["decision"], line["invoice"]["currency"]) == ("accept", "GBP")
    assert check.main([good, faulty]) == check.EXIT_REVIEW
    assert "no invoice date" in capsys.readouterr().out
    assert check.main([good, str(tmp_path / "none.png")]) == check.EXIT_UNREADABLE
