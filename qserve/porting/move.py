"""Moves one program from Ray Serve to qserve, or back."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

import libcst as cst
from libcst.metadata import MetadataWrapper

from qserve.porting.edit import Editor
from qserve.porting.names import Direction
from qserve.porting.plan import Left, Planner
from qserve.porting.references import References

_CONCERNED = re.compile(r"\b(?:ray|qserve)\b")
"""Is in every program that there is something to do for; to read the others would take their time for nothing."""


@dataclass(frozen=True)
class Outcome:
    """A program that was moved.

    Parameters:
      text: What it says now.
      left: What could not be moved, in the order of the file.
    """

    text: str
    left: list[Left]


def move(text: str, direction: Direction) -> Outcome:
    """Move a program.

    Parameters:
      text: The program, with the line ends of its file.
      direction: ``TO_QSERVE`` or ``TO_RAY``.

    Raises:
      SyntaxError: The text is not Python; ``lineno`` says where.
    """
    if _CONCERNED.search(text) is None:
        return Outcome(text, [])
    try:
        wrapper = MetadataWrapper(cst.parse_module(text))
    except cst.ParserSyntaxError as error:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(text)  # Python's own message, and the right line
        raise SyntaxError(error.message, (None, error.raw_line, error.raw_column + 1, None)) from error
    if wrapper.module.code != text:
        raise SyntaxError("the text cannot be kept as it is, for example because its lines end with CR alone")
    found = References((direction.source, direction.target))
    wrapper.visit(found)
    plan = Planner(found, wrapper, direction).plan()
    if not plan.texts and not plan.imports:
        return Outcome(text, plan.left)
    return Outcome(wrapper.module.visit(Editor(plan, found.texts)).code, plan.left)
