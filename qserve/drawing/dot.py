"""A graph in the DOT language, and as an image that graphviz makes of it."""

from __future__ import annotations

import importlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qserve.drawing.picture import Picture, picture_of
from qserve.drawing.svg import to_svg
from qserve.graph.nodes import DAGNode

_PLAIN_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_KEYWORDS = {"digraph", "edge", "graph", "node", "strict", "subgraph"}


@dataclass(frozen=True, repr=False)
class Dot:
    """A picture in the DOT language, which notebooks show as SVG."""

    picture: Picture

    def to_string(self) -> str:
        """Return the drawing as text: a digraph named G, with one line for each edge."""
        lines = [f"{_quoted(edge.child)} -> {_quoted(edge.user)};" for edge in self.picture.edges]
        body = "\n".join(lines or [f"{_quoted(self.picture.root)};"])
        return f"digraph G {{\nrankdir=LR;\n{body}\n}}\n"

    __str__ = to_string

    def _repr_svg_(self) -> str:
        return to_svg(self.picture)

    def __repr__(self) -> str:
        return f"Dot(root={self.picture.root!r}, edges={len(self.picture.edges)})"


def dag_to_dot(node: DAGNode) -> Dot:
    """Draw a node and all that it needs; nothing is built or run.

    Parameters:
      node: The root of what is drawn.

    Returns:
      The drawing, which notebooks show as a picture; ``to_string()`` returns it in the DOT language. Edges are written
      from the drawn node downwards, depth first, and repeated labels numbered in the order of their first appearance.

    Raises:
      TypeError: It is not a node.

    Example:
      from qserve.dag import dag_to_dot

      @serve.deployment
      def double(number: int) -> int:
          return 2 * number

      print("double -> double_1;" in dag_to_dot(double.bind(double.bind(1))).to_string())  # False
    """
    return Dot(picture_of(node))


def to_dot(picture: Picture) -> str:
    """Return a picture in the DOT language."""
    return Dot(picture).to_string()


def plot(node: DAGNode, to_file: str | Path | None = None) -> Any:
    """Draw a node and all that it needs as an image.

    `qserve graph` and ``dag_to_dot`` draw without graphviz.

    Parameters:
      node: The root of what is drawn.
      to_file: The file to write; its suffix chooses the format, PNG without one. None returns an image for a notebook.

    Returns:
      An ``IPython.display.Image``, or None where a file is written.

    Raises:
      ImportError: pydot, graphviz or (for notebooks) IPython is missing.
      TypeError: It is not a node.

    Example:
      from qserve.dag import plot

      plot(Greeter.bind(), to_file="greeter.png")
    """
    pydot = _required("pydot", "pip install pydot")
    if shutil.which("dot") is None:
        raise ImportError(
            "plot() needs graphviz, and its program 'dot' is not on the PATH. Install it by your "
            "system's package manager: apt-get install graphviz, or brew install graphviz."
        )
    (drawing,) = pydot.graph_from_dot_data(dag_to_dot(node).to_string())
    if to_file is None:
        display = _required("IPython.display", "pip install ipython, or pass to_file='graph.png'")
        return display.Image(drawing.create(format="png"))
    path = Path(to_file)
    drawing.write(str(path), format=path.suffix.lstrip(".") or "png")
    return None


def _required(module: str, advice: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"plot() needs the package {package!r}: {advice}.") from error


def _quoted(label: str) -> str:
    if _PLAIN_ID.match(label) and label.lower() not in _KEYWORDS:
        return label
    return '"' + label.replace("\\", "\\\\").replace('"', '\\"') + '"'
