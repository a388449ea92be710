"""Reads a file into lines of words: the text layer of a PDF where there is an honest one, else OCR of its image.

Rules: a text layer is believed only when the page is made of text. A scan with a hidden layer of somebody else's OCR
is recognised again from its pixels, because such a layer carries no confidence and is often wrong.
Every input is bounded (`Limits`), and a file whose content was read before in this process is not read twice.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from PIL import Image, UnidentifiedImageError

from sagalog.agents.invoices import ocr
from sagalog.agents.invoices.document import PAGE_UNITS, Box, Line, Method, Page, Reading, Word, lines_of
from sagalog.agents.invoices.errors import (
    DocumentTooLarge,
    EncryptedDocument,
    UnreadableDocument,
    UnsupportedDocument,
)

__all__ = ["DEFAULT_LIMITS", "Limits", "Line", "Page", "Reading", "Word", "read_document"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document may cost. Sizes in bytes, `pixels_max` per page image, `seconds_max` for the whole document."""

    bytes_max: int = 20 * 1024 * 1024
    pages_max: int = 20
    pixels_max: int = 40_000_000
    characters_max: int = 20_000
    seconds_max: float = 60.0


DEFAULT_LIMITS = Limits()
CACHED_READINGS_MAX = 64
RENDER_DPI = 150
POINTS_PER_INCH = 72
# Larger images are reduced to this before OCR: about 190 dpi of an A4 page, beyond which accuracy no longer grows.
OCR_WIDTH_PX_MAX = 1600
# Smaller ones are enlarged to this: below it, digits have too few pixels to tell 3 from 8.
OCR_WIDTH_PX_MIN = 1000
# A page whose pictures cover this much is a scan, whatever its text layer says.
SCAN_COVER_SHARE = 0.5
# A text layer with fewer characters than this is a stamp or a page number, not the content.
LAYER_CHARACTERS_MIN = 40
# More unmapped characters than this: the font has no way back to Unicode.
UNMAPPED_SHARE_MAX = 0.02
# A gap wider than this share of the height ends a word, even when the file has no space character there.
WORD_GAP_SHARE = 0.25
# The same character again within this share of its own width is the same one drawn twice, not a double letter.
TWIN_SHARE = 0.4
IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")

_cache: OrderedDict[tuple[str, Limits], Reading] = OrderedDict()
_cache_lock = threading.Lock()
# PDFium is not thread-safe: one document at a time in a process.
_pdfium_lock = threading.Lock()


def read_document(path: Path, limits: Limits = DEFAULT_LIMITS) -> Reading:
    """Read a PDF or an image.

    Raises `UnreadableDocument` (or its subclasses for encrypted and unsupported files), `DocumentTooLarge`,
    `ReadingTimeout`. The same content is read once per process (the last 64 documents are remembered).
    """
    data = _load(path, limits)
    key = (hashlib.sha256(data).hexdigest(), limits)
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    deadline = time.monotonic() + limits.seconds_max
    # Some producers put a few bytes before the header; the standard asks readers to look at the first 1024.
    if b"%PDF-" in data[:1024]:
        pages = _read_pdf(path.name, data, limits, deadline)
    else:
        pages = _read_image(path.name, data, limits, deadline)
    method: Method = "ocr" if any(page.method == "ocr" for page in pages) else "text-layer"
    reading = Reading(sha256=key[0], method=method, pages=pages)
    with _cache_lock:
        _cache[key] = reading
        while len(_cache) > CACHED_READINGS_MAX:
            _cache.popitem(last=False)
    return reading


def _load(path: Path, limits: Limits) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limits.bytes_max + 1)
    except OSError as error:
        raise UnreadableDocument(
            f"{path.name} cannot be opened ({error.strerror}); check that the file is there and may be read"
        ) from error
    if len(data) > limits.bytes_max:
        raise DocumentTooLarge(
            f"{path.name} is larger than {limits.bytes_max:,} bytes; send a smaller scan or raise Limits.bytes_max"
        )
    if not data:
        raise UnreadableDocument(f"{path.name} is empty (0 bytes); send it again")
    return data


def _read_pdf(name: str, data: bytes, limits: Limits, deadline: float) -> tuple[Page, ...]:
    with _pdfium_lock:
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            if getattr(error, "err_code", None) == pdfium_c.FPDF_ERR_PASSWORD:
                raise EncryptedDocument(f"{name} is protected by a password; send it without one") from error
            raise UnreadableDocument(f"{name} is not a readable PDF ({error}); export or scan it again") from error
        try:
            if len(document) > limits.pages_max:
                raise DocumentTooLarge(
                    f"{name} has {len(document)} pages, more than {limits.pages_max}; "
                    "send the invoice alone, without its annexes"
                )
            if len(document) == 0:
                raise UnreadableDocument(f"{name} has no pages; export or scan it again")
            return tuple(_read_pdf_page(name, document, index, limits, deadline) for index in range(len(document)))
        finally:
            document.close()


def _read_pdf_page(name: str, document: pdfium.PdfDocument, index: int, limits: Limits, deadline: float) -> Page:
    try:
        page = document[index]
    except pdfium.PdfiumError as error:
        raise UnreadableDocument(f"page {index + 1} of {name} is damaged ({error}); export it again") from error
    try:
        width, height = page.get_size()
        words = _layer_words(page, name, limits)
        if words is not None:
            return Page(index + 1, height / width * PAGE_UNITS, lines_of(words), "text-layer")
        scale = RENDER_DPI / POINTS_PER_INCH
        if width * height * scale * scale > limits.pixels_max:
            raise DocumentTooLarge(
                f"page {index + 1} of {name} measures {width:.0f} x {height:.0f} points, too large to render "
                f"within {limits.pixels_max:,} pixels; send it in a usual paper size"
            )
        image = page.render(scale=scale, may_draw_forms=True).to_pil()
    finally:
        page.close()
    return _recognised(image, index + 1, deadline)


def _layer_words(page: pdfium.PdfPage, name: str, limits: Limits) -> list[Word] | None:
    """The words of the text layer, or None when it cannot be believed and the pixels must be read."""
    if page.get_rotation() != 0:
        return None
    left, bottom, right, top = page.get_bbox()
    width, height = right - left, top - bottom
    covered = 0.0
    for item in page.get_objects(filter=[pdfium_c.FPDF_PAGEOBJ_IMAGE], max_depth=3):
        x0, y0, x1, y1 = item.get_bounds()
        covered = max(covered, max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, top) - max(y0, bottom)))
    if covered > SCAN_COVER_SHARE * width * height:
        return None
    layer = page.get_textpage()
    try:
        count = layer.count_chars()
        if count > limits.characters_max:
            raise DocumentTooLarge(
                f"a page of {name} has {count:,} characters, more than {limits.characters_max:,}; "
                "send the invoice alone, without its annexes"
            )
        # One call per character and not get_text_range: that one drops characters, and positions would shift.
        characters = [chr(pdfium_c.FPDFText_GetUnicode(layer.raw, i)) for i in range(count)]
        visible = [c for c in characters if not c.isspace()]
        unmapped = sum(1 for c in visible if c in "\x00\ufffd\ufffe" or "\ue000" <= c <= "\uf8ff")
        if len(visible) < LAYER_CHARACTERS_MIN or unmapped > UNMAPPED_SHARE_MAX * len(visible):
            return None
        scale = PAGE_UNITS / width
        boxes: list[Box | None] = []
        for i, character in enumerate(characters):
            if character.isspace() or ord(character) < 0x20:
                boxes.append(None)
                continue
            x0, y0, x1, y1 = layer.get_charbox(i, loose=True)
            inside = x1 > left and x0 < right and y1 > bottom and y0 < top
            box = Box((x0 - left) * scale, (top - y1) * scale, (x1 - left) * scale, (top - y0) * scale)
            boxes.append(box if inside and box.height > 0 else None)
    finally:
        layer.close()
    return _join(characters, boxes)


def _join(characters: list[str], boxes: list[Box | None]) -> list[Word]:
    """Characters into words: a space, a jump to another line, or a wide gap ends a word."""
    words: list[Word] = []
    text = ""
    box: Box | None = None
    previous: Box | None = None
    drawn: dict[str, list[Box]] = {}
    for character, at in zip(characters, boxes, strict=True):
        if at is None:
            if box is not None:
                words.append(Word(text, box, 1.0))
            text, box = "", None
            continue
        # Bold set by drawing twice, a little apart: the second drawing would double every digit.
        twins = drawn.setdefault(character, [])
        # (The character just before at the very same place is the other half of a ligature such as "ff".)
        if at != previous and any(_twins(twin, at) for twin in twins):
            continue
        previous = at
        twins.append(at)
        if box is not None:
            beside = abs(at.middle - box.middle) < 0.5 * box.height
            gap = at.x0 - box.x1
            if not beside or gap > WORD_GAP_SHARE * box.height or gap < -1.0 * box.height:
                words.append(Word(text, box, 1.0))
                text, box = "", None
        text += character
        box = at if box is None else Box(min(box.x0, at.x0), min(box.y0, at.y0), max(box.x1, at.x1), max(box.y1, at.y1))
    if box is not None:
        words.append(Word(text, box, 1.0))
    return words


def _twins(one: Box, other: Box) -> bool:
    return (
        abs(one.x0 - other.x0) < TWIN_SHARE * min(one.width, other.width)
        and abs(one.middle - other.middle) < 0.2 * other.height
    )


def _read_image(name: str, data: bytes, limits: Limits, deadline: float) -> tuple[Page, ...]:
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > limits.pages_max:
                raise DocumentTooLarge(f"{name} has {frames} pages, more than {limits.pages_max}; send fewer at once")
            pages = []
            for index in range(frames):
                image.seek(index)
                width, height = image.size
                if width * height > limits.pixels_max:
                    raise DocumentTooLarge(
                        f"{name} measures {width} x {height} pixels, more than {limits.pixels_max:,} in all; "
                        "scan it with fewer dpi (150 to 300 are enough)"
                    )
                pages.append(_recognised(_upright(image), index + 1, deadline))
            return tuple(pages)
    except UnidentifiedImageError as error:
        raise UnsupportedDocument(
            f"{name} is neither a PDF nor an image ({', '.join(IMAGE_FORMATS)}); send it in one of these formats"
        ) from error
    except Image.DecompressionBombError as error:
        raise DocumentTooLarge(f"{name} unpacks into too many pixels ({error}); scan it with fewer dpi") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableDocument(f"{name} is a damaged image ({error}); scan it again") from error


def _upright(image: Image.Image) -> Image.Image:
    """As a camera meant it (EXIF), on white where it is transparent."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        white = Image.new("RGBA", turned.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, turned).convert("RGB")
    return turned.convert("RGB")


def _recognised(image: Image.Image, number: int, deadline: float) -> Page:
    image = image.convert("RGB")
    width, height = image.size
    wanted = min(max(width, OCR_WIDTH_PX_MIN), OCR_WIDTH_PX_MAX)
    if wanted != width and width > 0:
        image = image.resize((wanted, max(1, round(height * wanted / width))), Image.Resampling.LANCZOS)
    words = ocr.recognise(np.asarray(image, dtype=np.uint8), deadline)
    return Page(number, image.size[1] / image.size[0] * PAGE_UNITS, lines_of(words), "ocr")
