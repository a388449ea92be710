"""The shape of a document that was read: pages of lines of words, each with a box and a confidence.

Rules: coordinates are thousandths of the page's width (x to the right, y downwards), whatever the source was, so that
geometry elsewhere needs no knowledge of dpi or points. Everything here is frozen; nothing here interprets text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Method = Literal["text-layer", "ocr"]

PAGE_UNITS = 1000.0
# Two words share a line when their centres differ by less than this share of the smaller height. Labels and values are
# often set in different sizes, so this must be generous, but below one half or neighbouring lines merge.
SAME_LINE_SHARE = 0.45


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in page units."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def middle(self) -> float:
        """The vertical centre."""
        return (self.y0 + self.y1) / 2


@dataclass(frozen=True, slots=True)
class Word:
    """A run of text without a break: one word of a text layer, or one box of the OCR (which may hold several words).

    `confidence` is between 0 and 1; a text layer has 1.
    """

    text: str
    box: Box
    confidence: float


@dataclass(frozen=True, slots=True)
class Line:
    """Words that stand beside each other, from left to right."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, slots=True)
class Page:
    """One page. `height` is in page units too; the width is always `PAGE_UNITS`."""

    number: int
    height: float
    lines: tuple[Line, ...]
    method: Method


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read from one file. `sha256` identifies the content; `method` is "ocr" when any page needed OCR."""

    sha256: str
    method: Method
    pages: tuple[Page, ...]

    @property
    def text(self) -> str:
        return "\n".join(line.text for page in self.pages for line in page.lines)


def lines_of(words: Iterable[Word]) -> tuple[Line, ...]:
    """Group words into lines by their vertical position, top to bottom."""
    rows: list[list[Word]] = []
    for word in sorted(words, key=lambda w: (w.box.middle, w.box.x0)):
        # Only the last few rows can still be beside this word: the words come sorted by their centre.
        for row in reversed(rows[-3:]):
            middle = sum(w.box.middle for w in row) / len(row)
            height = min(word.box.height, min(w.box.height for w in row))
            if abs(word.box.middle - middle) <= SAME_LINE_SHARE * height:
                row.append(word)
                break
        else:
            rows.append([word])
    return tuple(Line(tuple(sorted(row, key=lambda w: w.box.x0))) for row in rows)
