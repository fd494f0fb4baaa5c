"""Tables of text, for a terminal and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

DASH = "-"
"""In a cell for which there is nothing to say."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text: a title, and rows as long as the header, whose first `words` columns are not numbers.

    An empty title is left out of Markdown. `marked` cells, by row and column, are in bold type; `notes` stand below,
    each a line.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    marked: frozenset[tuple[int, int]] = frozenset()
    notes: Sequence[str] = ()

    def rich(self) -> "Table":
        """Return the table for a terminal."""
        # Here, because a command that prints none does without.
        from rich.table import Table
        from rich.text import Text

        notes = "\n".join(self.notes) or None
        table = Table(title=self.title, title_justify="left", title_style="bold", caption=notes, caption_justify="left")
        for number, column in enumerate(self.header):
            table.add_column(column, justify="right" if number >= self.words else "left")
        for y, row in enumerate(self.rows):
            table.add_row(*(Text(cell, "bold" if (y, x) in self.marked else "") for x, cell in enumerate(row)))
        return table

    def markdown(self) -> str:
        """Return the table as Markdown, under its title if it has one."""
        rule = ["---" if number < self.words else "---:" for number in range(len(self.header))]
        rows = [
            [f"**{cell}**" if (y, x) in self.marked else cell for x, cell in enumerate(row)]
            for y, row in enumerate(self.rows)
        ]
        lines = [self.header, rule, *rows]
        below = "".join(f"\n{note}\n" for note in self.notes)
        above = f"**{self.title}**\n\n" if self.title else ""
        return above + "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n{below}"
