"""Moves all programs of a folder, and says what is changed and what is left."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qserve.porting import configs, files
from qserve.porting.files import Source
from qserve.porting.move import move
from qserve.porting.names import TO_QSERVE, TO_RAY
from qserve.porting.plan import Left


@dataclass
class Report:
    """What was found.

    Parameters:
      programs: How many files of Python were read.
      changed: Files whose text changes, with the old text and the new one.
      left: What could not be moved, by file.
      config_files: Files in Ray Serve's format.
    """

    programs: int = 0
    changed: dict[Path, tuple[Source, str]] = field(default_factory=dict)
    left: dict[Path, list[Left]] = field(default_factory=dict)
    config_files: list[Path] = field(default_factory=list)

    def diffs(self) -> Iterator[str]:
        """Yield the lines of a unified diff, which ``patch -p1`` and ``git apply`` take."""
        for path, (source, new) in self.changed.items():
            whole = path.absolute()
            name = (whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole).as_posix().lstrip("/")
            lines = difflib.unified_diff(
                source.text.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{name}", f"b/{name}"
            )
            for line in lines:
                yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"

    @property
    def number_left(self) -> int:
        """How many things are left, in all files."""
        return sum(map(len, self.left.values()))


def port(root: Path, *, to_ray: bool = False) -> Report:
    """Move a program, or all programs below a folder, in memory: nothing is written.

    Parameters:
      to_ray: Move them from qserve to Ray Serve.

    Raises:
      UsageProblem: There is no such file or folder.
    """
    report = Report()
    direction = TO_RAY if to_ray else TO_QSERVE
    for path in files.find(root, (".py", ".pyi", ".yaml", ".yml")):
        try:
            if path.suffix in (".yaml", ".yml"):
                if not to_ray and files.is_config(path):
                    report.config_files.append(path)
                    _note(report, path, configs.examine(path))
                continue
            report.programs += 1
            source = files.read(path)
            outcome = move(source.text, direction)
        except (SyntaxError, OSError, RecursionError) as error:
            _note(report, path, [_unreadable(error)])
            continue
        if outcome.text != source.text:
            report.changed[path] = source, outcome.text
        _note(report, path, outcome.left)
    return report


def _note(report: Report, path: Path, left: list[Left]) -> None:
    if left:
        report.left[path] = left


def _unreadable(error: Exception) -> Left:
    if isinstance(error, SyntaxError):
        return Left(
            error.lineno or 1, error.offset or 1, "syntax error", "unreadable", f"{error.msg}; correct it first"
        )
    if isinstance(error, RecursionError):
        return Left(1, 1, "the file", "unreadable", "its expressions are nested too deeply: move it by hand")
    return Left(1, 1, "the file", "unreadable", str(error))
