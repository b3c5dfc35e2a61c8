"""The command line that all benchmarks share: it reads the options, and prints, draws and saves the figures."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import linear_regression

from harness.figures import Figure
from harness.machine import described

ROOT = Path(__file__).parents[2]
PAGE, IMAGES = ROOT / "docs" / "performance.md", ROOT / "docs" / "images"


@dataclass(frozen=True)
class Given:
    """The options of one run.

    Parameters:
      sizes: The sizes to measure, or the names of the systems to compare.
      seconds: How long each point is measured.
      options: The benchmark's own options.
    """

    sizes: list[str]
    seconds: float
    options: argparse.Namespace

    @property
    def numbers(self) -> list[int]:
        """Return the sizes as numbers, from the smallest."""
        return sorted(map(int, self.sizes))


def main(
    measure: Callable[[Given], Iterable[Figure]],
    doc: str | None,
    sizes: Iterable[object],
    quick: Iterable[object],
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """Measure, and print a table for each figure.

    Parameters:
      measure: Yields the figures.
      doc: The docstring of the program, for ``--help``.
      sizes, quick: What is measured by default, and with ``--quick``.
      add_options: Adds options of its own.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", help=f"points to measure, separated by commas ({_joined(sizes)})")
    parser.add_argument("--seconds", type=float, help="how long each point is measured (3)")
    parser.add_argument("--quick", action="store_true", help=f"one second each of {_joined(quick)}")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write table, data and plot to this folder as well")
    parser.add_argument("--docs", action="store_true", help="write table and plot into docs/performance.md")
    add_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends as well
    chosen = options.sizes or _joined(quick if options.quick else sizes)
    seconds = options.seconds or (1.0 if options.quick else 3.0)
    machine = described()
    for figure in measure(Given(chosen.split(","), seconds, options)):
        done = replace(figure, machine=machine)
        print(f"\n{done.title}: {done.law}\n\n{done.table()}\n\n{machine}", flush=True)
        if options.out:
            done.write(options.out)
        if options.docs:
            into_docs(done)


def into_docs(figure: Figure, page: Path = PAGE, images: Path = IMAGES) -> None:
    """Replace a figure's block of the page, and its picture."""
    begin, end = f"<!-- benchmark: {figure.name} -->\n", "<!-- end of benchmark -->"
    picture = images / f"benchmark-{figure.name}.svg"
    link = f"![{figure.title}](images/{picture.name})"
    block = f"{link}\n\n{figure.law}\n\n{figure.table()}\n\nMeasured on {figure.machine}.\n"
    text, count = re.subn(
        re.escape(begin) + ".*?" + re.escape(end),
        lambda _: begin + block + end,
        page.read_text(),
        flags=re.S,
    )
    if count != 1:
        raise SystemExit(f"{page} has {count} blocks {begin.strip()!r}; it needs one")
    picture.write_text(figure.svg())
    page.write_text(text)


def each_more(xs: list[float], ys: list[float]) -> float:
    """Return by how much y grows when x grows by one: the slope of the line through the points."""
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if y == y]
    return linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else float("nan")


def _joined(sizes: Iterable[object]) -> str:
    return ",".join(map(str, sizes))
