"""Figures as a table, as data, and as a picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import plot

Cell = float | str | None


@dataclass(frozen=True)
class Panel:
    """One of the plots in the picture of a figure.

    Parameters:
      y: What the vertical axis shows, with its unit.
      columns: The columns that are drawn, one line (or bar) each.
      from_zero: Whether the vertical axis is linear and begins at 0; otherwise it is logarithmic.
    """

    y: str
    columns: tuple[str, ...]
    from_zero: bool = False


@dataclass(frozen=True)
class Figure:
    """The result of a benchmark.

    Parameters:
      name: The name of its files.
      title: The heading of its picture.
      columns: The names of the columns; the first is what grows, or what is compared.
      rows: Each cell is a number, None, or a text that says why there is no number.
      panels: What is drawn.
      law: One sentence that says what the figures say, with their numbers.
      machine: Where they were measured.
      bars: Whether the rows are compared, and so drawn as bars.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    panels: tuple[Panel, ...]
    law: str
    machine: str = ""
    bars: bool = False

    def saying(self, law: str) -> Figure:
        """Return the same figure with its law, which is worked out from its own columns."""
        return replace(self, law=law if len(self.rows) > 1 else "One point does not show how it grows.")

    def column(self, name: str) -> list[float]:
        """Return a column of numbers; NaN where there is none."""
        place = self.columns.index(name)
        return [float(row[place]) if isinstance(row[place], (int, float)) else math.nan for row in self.rows]  # type: ignore[arg-type]

    def table(self) -> str:
        """Return a table in Markdown."""
        lines = [" | ".join(self.columns), " | ".join("---" for _ in self.columns)]
        lines += [" | ".join(shown(cell) for cell in row) for row in self.rows]
        return "\n".join(f"| {line} |" for line in lines)

    def write(self, folder: Path) -> None:
        """Write ``NAME.md``, ``NAME.json`` and ``NAME.svg``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(f"{self.law}\n\n{self.table()}\n\n{self.machine}\n")
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / f"{self.name}.svg").write_text(self.svg())

    def svg(self) -> str:
        """Return the picture."""
        labels = [_short(row[0]) for row in self.rows]
        panels = [(one.y, [(name, self.column(name)) for name in one.columns], one.from_zero) for one in self.panels]
        if self.bars:
            return plot.bars(self.title, labels, panels)
        return plot.lines(self.title, self.columns[0], self.column(self.columns[0]), labels, panels)


def _short(cell: Cell) -> str:
    """Return a cell as the label of a tick, with thousands as K and millions as M."""
    for factor, letter in ((10**6, "M"), (10**3, "K")):
        if isinstance(cell, int) and cell >= factor:
            return f"{cell / factor:g}{letter}"
    return shown(cell)


def shown(cell: Any) -> str:
    """Return a cell as text: three digits of a number, with thousands apart."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        digits = 0 if cell == 0 or abs(cell) >= 100 else 2 - math.floor(math.log10(abs(cell)))
        return f"{cell:,.{min(max(digits, 0), 4)}f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
