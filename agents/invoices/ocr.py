"""Recognises the text of one page's image, by RapidOCR on ONNX Runtime with the models of its wheel.

Rules: one engine per process, made at the first use and guarded by a lock; threads are bounded, since an agent shares
its machine with others; time is checked between the stages, so that a page cannot hold an agent for ever.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from sagalog.agents.invoices.document import PAGE_UNITS, Box, Word
from sagalog.agents.invoices.errors import ReadingTimeout

OCR_THREADS = 2
# The detector looks at the page reduced to this many pixels a side, the recogniser at full size: finding 9 pt text needs
# half the pixels that reading it does, and the time of finding grows with the pixels.
DETECT_SIDE_PX_MAX = 1280
# More boxes than this is not an invoice page but a photograph of gravel.
BOXES_MAX = 800
# Text longer than this many times its height is running prose (terms, footers): it costs most of the time and holds
# no field. Measured on the real invoices: the limit halves the seconds per page and loses no field.
PROSE_ASPECT_MIN = 36.0
# The recogniser pads every box to this width. One box at a time with little padding took 40 % less processor time than
# the library's default (batches of six, padded to 320): most boxes of an invoice are short.
RECOGNISE_WIDTH_PX_MIN = 96
RECOGNISE_BATCH = 1
# Below this the recogniser saw noise, not text.
TEXT_CONFIDENCE_MIN = 0.5
# A page turned by more than this is not deskewed: boxes of single words no longer tell the angle reliably.
SKEW_DEGREES_MAX = 8.0

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Engine:
    """The engine's three stages; `Any` ends here, the functions below are typed."""

    rapid: Any
    lock: threading.Lock


_engine: Engine | None = None
_engine_lock = threading.Lock()


def engine() -> Engine:
    """The process's engine. Making it takes about half a second, once."""
    global _engine
    with _engine_lock:
        if _engine is None:
            # ONNX Runtime would report to its maker; it reads this when it is loaded.
            os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
            from rapidocr_onnxruntime import RapidOCR

            finder, reader = _models()
            rapid = RapidOCR(
                intra_op_num_threads=OCR_THREADS,
                inter_op_num_threads=1,
                det_limit_type="min",
                det_limit_side_len=640,
                rec_rec_batch_num=RECOGNISE_BATCH,
                det_model_path=str(finder),
                rec_model_path=str(reader),
            )
            rapid.text_rec.rec_image_shape = [3, 48, RECOGNISE_WIDTH_PX_MIN]
            rapid.text_det.infer.session = _session(finder)
            rapid.text_rec.session.session = _session(reader)
            _engine = Engine(rapid, threading.Lock())
        return _engine


def _session(model: Path) -> Any:
    """A session whose threads sleep while they wait.

    The library's own sessions spin: beside other work on two cores that doubled the processor time of a page and
    tripled its duration.
    """
    # Imported by name: the package has no type information.
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = OCR_THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _models() -> tuple[Path, Path]:
    """The models that find and that read text: those of the `rapidocr` wheel (PP-OCRv6) when it is installed.

    The models of `rapidocr-onnxruntime` (PP-OCRv4) know neither the euro nor the pound sign and drop most spaces;
    the newer ones run in the same engine. Without them such invoices go to a review because of their currency.
    """
    for package in ("rapidocr", "rapidocr_onnxruntime"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent / "models"
        finders, readers = sorted(folder.glob("*_det_*.onnx")), sorted(folder.glob("*_rec_*.onnx"))
        if finders and readers:
            return finders[-1], readers[-1]
    raise RuntimeError(
        "no OCR models were found in the packages rapidocr and rapidocr_onnxruntime; "
        "install sagalog with its demo extra: pip install 'sagalog[demo]'"
    )


def recognise(image: Image, deadline: float) -> tuple[Word, ...]:
    """The words of one page's image (height x width x 3, RGB), deskewed; `deadline` is a time of `time.monotonic()`.

    Raises `ReadingTimeout` when the deadline passes between two stages.
    """
    one = engine()
    # The stages keep per-call state in the engine, so two threads must not be in it at once.
    with one.lock:
        _check(deadline, "finding the text")
        small, shrink = _reduced(image)
        boxes, _ = one.rapid.auto_text_det(small)
        if boxes is None:
            return ()
        quads = [np.asarray(box, dtype=np.float64) / shrink for box in boxes[:BOXES_MAX]]
        quads = [quad for quad in quads if _aspect(quad) < PROSE_ASPECT_MIN]
        crops = one.rapid.get_crop_img_list(image, [quad.astype(np.float32) for quad in quads])
        # Sorted by shape, so that a batch is not padded to the width of one long line.
        order = sorted(range(len(crops)), key=lambda i: crops[i].shape[1] / max(1, crops[i].shape[0]))
        found: dict[int, tuple[str, float]] = {}
        for start in range(0, len(order), RECOGNISE_BATCH):
            _check(deadline, "reading the text")
            batch = order[start : start + RECOGNISE_BATCH]
            results, _ = one.rapid.text_rec([crops[i] for i in batch], False)
            found.update({i: (str(text), float(score)) for i, (text, score, *_) in zip(batch, results, strict=True)})
        texts = [found[i] for i in range(len(crops))]
    return _words(quads, texts, image.shape[1], image.shape[0])


def _reduced(image: Image) -> tuple[Image, float]:
    """The image for the detector, and its scale (at most 1)."""
    height, width = image.shape[:2]
    shrink = DETECT_SIDE_PX_MAX / max(height, width)
    if shrink >= 1:
        return image, 1.0
    small = PIL.Image.fromarray(image).resize(
        (max(1, round(width * shrink)), max(1, round(height * shrink))), PIL.Image.Resampling.BOX, reducing_gap=2.0
    )
    return np.asarray(small, dtype=np.uint8), shrink


def _words(
    quads: list[NDArray[np.float64]], texts: list[tuple[str, float]], width_px: int, height_px: int
) -> tuple[Word, ...]:
    angle = _skew(quads)
    cos, sin = math.cos(-angle), math.sin(-angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    centre = np.array([width_px / 2, height_px / 2])
    scale = PAGE_UNITS / width_px
    words = []
    for quad, (text, score) in zip(quads, texts, strict=True):
        if not text.strip() or score < TEXT_CONFIDENCE_MIN:
            continue
        points = ((quad - centre) @ turn.T + centre) * scale
        # The mean of both corners of a side, not the extreme one: the box of a turned line must not grow.
        x0, x1 = (points[0][0] + points[3][0]) / 2, (points[1][0] + points[2][0]) / 2
        y0, y1 = (points[0][1] + points[1][1]) / 2, (points[2][1] + points[3][1]) / 2
        words.append(Word(_plain(text), Box(float(x0), float(y0), float(x1), float(y1)), score))
    return tuple(words)


def _plain(text: str) -> str:
    """Full-width punctuation, which the models produce at times, as the plain one."""
    return text.translate(str.maketrans("，：；（）．％＃－", ",:;().%#-")).strip()


def _aspect(quad: NDArray[np.float64]) -> float:
    width = float(np.linalg.norm(quad[1] - quad[0]))
    height = float(np.linalg.norm(quad[3] - quad[0]))
    return width / max(1.0, height)


def _skew(quads: list[NDArray[np.float64]]) -> float:
    """The page's angle in radians: the median over the boxes that are long enough to tell."""
    angles = [
        math.atan2(float(quad[1][1] - quad[0][1]), float(quad[1][0] - quad[0][0]))
        for quad in quads
        if _aspect(quad) >= 5
    ]
    angles = [angle for angle in angles if abs(angle) < math.radians(SKEW_DEGREES_MAX)]
    return statistics.median(angles) if angles else 0.0


def _check(deadline: float, doing: str) -> None:
    if time.monotonic() > deadline:
        raise ReadingTimeout(
            f"reading the page stopped while {doing}: the time allowed for the document is used up; "
            "try again when the machine is less busy, or allow more seconds"
        )
