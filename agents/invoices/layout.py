"""A reading as rows of cells, with the labels, dates and figures of each cell found once.

Rule: geometry lives here. A cell is a run of words without a wide gap; a row is what stands on one height. The other
modules ask "what is right of this label", "what is below it", and need no coordinates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sagalog.agents.invoices.dates import FoundDate, find_dates
from sagalog.agents.invoices.document import Box, Reading, Word
from sagalog.agents.invoices.figures import Figure, decimal_mark, find_figures
from sagalog.agents.invoices.labels import FoundLabel, find_labels

# A gap wider than this share of the text's height separates columns; a space is about a quarter of it.
CELL_GAP_SHARE = 0.8
# A cell with at least this many words is running prose (terms, footers): amounts in it are not fields.
PROSE_WORDS_MIN = 9
PROSE_LETTERS_MIN = 60
# A value stands below its label within this many text heights (centre to centre).
BELOW_HEIGHTS_MAX = 2.6


@dataclass(frozen=True)
class Cell:
    """A run of words without a wide gap. `row` is the row's number in the document."""

    text: str
    box: Box
    confidence: float
    page: int
    row: int
    labels: tuple[FoundLabel, ...]
    dates: tuple[FoundDate, ...]
    figures: tuple[Figure, ...]

    @property
    def prose(self) -> bool:
        words = re.findall(r"[^\W\d_]{2,}", self.text)
        return len(words) >= PROSE_WORDS_MIN or sum(len(w) for w in words) >= PROSE_LETTERS_MIN

    def x_of(self, index: int) -> float:
        """Where the character at `index` stands, as far as the cell's box tells."""
        return self.box.x0 + self.box.width * index / max(1, len(self.text))

    def has(self, *labels: str) -> bool:
        return any(found.label in labels for found in self.labels)


@dataclass(frozen=True)
class Row:
    """Cells on one height, from left to right."""

    number: int
    page: int
    cells: tuple[Cell, ...]

    @property
    def text(self) -> str:
        return "  ".join(cell.text for cell in self.cells)

    @property
    def middle(self) -> float:
        return sum(cell.box.middle for cell in self.cells) / len(self.cells)

    @property
    def table_header(self) -> bool:
        """Whether this row names the columns of a table of lines: then its labels name no amount of their own."""
        if any(figure.decimals for cell in self.cells for figure in cell.figures if not figure.percent):
            return False
        columns = {found.phrase for cell in self.cells for found in cell.labels if found.label == "column"}
        amounts = any(cell.has("total", "net", "tax", "gross") for cell in self.cells)
        return len(columns) >= 2 or (len(columns) == 1 and amounts and len(self.cells) >= 3)


@dataclass(frozen=True)
class Layout:
    """The rows of a document, and its decimal separator where it tells."""

    rows: tuple[Row, ...]
    mark: str | None
    method: str
    _below: dict[int, tuple[Row, ...]] = field(default_factory=dict, repr=False)

    @property
    def cells(self) -> Iterator[Cell]:
        for row in self.rows:
            yield from row.cells

    @property
    def text(self) -> str:
        return "\n".join(row.text for row in self.rows)

    def right_of(self, cell: Cell) -> list[Cell]:
        """The cells of the same row to the right."""
        return [other for other in self.rows[cell.row].cells if other.box.x0 >= cell.box.x1 - 1 and other is not cell]

    def below(self, cell: Cell) -> list[Cell]:
        """The nearest cells under this one that overlap it horizontally or start at its left edge."""
        for row in self.rows[cell.row + 1 : cell.row + 4]:
            if row.page != cell.page or row.middle - cell.box.middle > BELOW_HEIGHTS_MAX * cell.box.height:
                break
            under = [
                other
                for other in row.cells
                if min(other.box.x1, cell.box.x1) - max(other.box.x0, cell.box.x0) > 0
                and other.box.y0 > cell.box.y0 + 0.3 * cell.box.height
            ]
            if under:
                return under
        return []


def lay_out(reading: Reading, whole_only: bool = False) -> Layout:
    """Build the layout. `whole_only`: the document's currency has no decimals, so "12,340" can only be thousands."""
    lines = [(page.number, line) for page in reading.pages for line in page.lines]
    # Dates look like figures with two decimals ("01.05.14"), so they must not vote on the decimal separator.
    mark = decimal_mark(_without_dates(word.text) for _, line in lines for word in line.words)
    rows = []
    for number, (page, line) in enumerate(lines):
        cells = tuple(_cell(group, page, number, mark, whole_only) for group in _groups(line.words))
        rows.append(Row(number, page, cells))
    return Layout(tuple(rows), mark, reading.method)


def _groups(words: tuple[Word, ...]) -> list[list[Word]]:
    groups: list[list[Word]] = [[words[0]]]
    for word in words[1:]:
        last = groups[-1][-1]
        if word.box.x0 - last.box.x1 > CELL_GAP_SHARE * min(last.box.height, word.box.height):
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def _cell(words: list[Word], page: int, row: int, mark: str | None, whole_only: bool) -> Cell:
    text = " ".join(word.text for word in words)
    box = Box(
        min(w.box.x0 for w in words),
        min(w.box.y0 for w in words),
        max(w.box.x1 for w in words),
        max(w.box.y1 for w in words),
    )
    dates = tuple(find_dates(text))
    masked = list(text)
    for date in dates:
        masked[date.start : date.end] = "\x00" * (date.end - date.start)
    figures = tuple(find_figures("".join(masked), mark, whole_only))
    return Cell(text, box, min(w.confidence for w in words), page, row, tuple(find_labels(text)), dates, figures)


def _without_dates(text: str) -> str:
    for date in reversed(find_dates(text)):
        text = text[: date.start] + text[date.end :]
    return text
