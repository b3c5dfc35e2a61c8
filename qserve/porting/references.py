"""Finds what a program uses of a package, in code and in annotations that are text, by the scopes of its names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import libcst as cst
from libcst.metadata import (
    Assignment,
    ExpressionContext,
    ExpressionContextProvider,
    ImportAssignment,
    ScopeProvider,
)


@dataclass(eq=False)
class Binding:
    """A name that an import binds.

    Parameters:
      statement, alias: Where it is imported.
      name: The name in the program.
      path: What it stands for: ``ray`` for ``import ray.serve``, and ``ray.serve`` for ``from ray import serve``.
      module: The module that is imported, or the path, of a ``from``.
      uses: Where the program uses it.
    """

    statement: cst.Import | cst.ImportFrom
    alias: cst.ImportAlias
    name: str
    path: str
    module: str
    uses: list[Use] = field(default_factory=list)

    @property
    def is_root(self) -> bool:
        """Whether the name is the beginning of a path, as with ``import ray.serve``."""
        return isinstance(self.statement, cst.Import) and self.alias.asname is None


@dataclass(eq=False)
class Use:
    """A name, or attributes of a name, that an import has bound.

    Parameters:
      node: The expression.
      at: The expression or the text that has a place in the file.
      rest: The attributes, each with a dot before.
      bindings: The imports that may have bound the name.
      is_rebound: Whether something else than an import may have bound it as well.
      known_attribute: The attribute that a call names by text, as in ``patch.object(ray, "get")``.
    """

    node: cst.BaseExpression
    at: cst.CSTNode
    rest: str
    bindings: list[Binding]
    is_rebound: bool
    known_attribute: str = ""


class References(cst.CSTVisitor):  # type: ignore[misc]  # libcst need not be installed where types are checked
    """Collects the imports of some packages in a module, and all uses of what they bind.

    Parameters:
      packages: ``ray``, for example.

    Attributes:
      bindings, stars: What the imports bind, and those of everything.
      uses: Every use, by its expression.
      texts: Annotations that are text, as expressions.
      names_in_text: Texts in calls, each with the function or the argument that takes it.
      calls: All calls.
      mentioned: Names in ``__all__``, ``global`` and ``nonlocal``, which therefore must stay.
      bound: Names that are assigned to.
    """

    METADATA_DEPENDENCIES: Any = (ScopeProvider, ExpressionContextProvider)

    def __init__(self, packages: Iterable[str]) -> None:
        super().__init__()
        self._packages = {*packages}
        self.bindings: list[Binding] = []
        self.stars: list[cst.ImportFrom] = []
        self.texts: dict[cst.SimpleString, cst.BaseExpression] = {}
        self.calls: list[cst.Call] = []
        self.uses: dict[cst.CSTNode, Use] = {}
        self.mentioned: set[str] = set()
        self.names_in_text: list[tuple[cst.SimpleString, str]] = []
        self.bound: set[str] = set()
        self._by_name: dict[cst.CSTNode, Binding] = {}
        self._in_annotation = 0
        self._deferred: list[tuple[cst.BaseExpression, cst.CSTNode]] = []

    # -- imports ---------------------------------------------------------------------------------

    def visit_Import(self, node: cst.Import) -> bool:
        for alias in node.names:
            module = dotted(alias.name)
            if module and module.split(".")[0] in self._packages:
                path = module if alias.asname else module.split(".")[0]
                self._bind(node, alias, path, module)
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        module = dotted(node.module) if node.module and not node.relative else None
        if not module or module.split(".")[0] not in self._packages:
            return False
        if isinstance(node.names, cst.ImportStar):
            self.stars.append(node)
            return False
        for alias in node.names:
            path = f"{module}.{dotted(alias.name)}"
            self._bind(node, alias, path, path)
        return False

    def _bind(self, node: cst.Import | cst.ImportFrom, alias: cst.ImportAlias, path: str, module: str) -> None:
        bound = alias.asname.name if alias.asname else alias.name
        name = (dotted(bound) or "").split(".")[0]
        binding = Binding(node, alias, name, path, module)
        self.bindings.append(binding)
        self._by_name[bound] = binding

    # -- uses ------------------------------------------------------------------------------------

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        if dotted(node) is None:
            node.value.visit(self)
        else:
            self._deferred.append((node, node))
        return False

    def visit_Name(self, node: cst.Name) -> None:
        context = self.get_metadata(ExpressionContextProvider, node, None)
        if context is ExpressionContext.STORE:
            self.bound.add(node.value)
        elif context is not None:
            self._deferred.append((node, node))

    # -- text ------------------------------------------------------------------------------------

    def visit_Annotation(self, node: cst.Annotation) -> None:
        self._in_annotation += 1

    def leave_Annotation(self, original_node: cst.Annotation) -> None:
        self._in_annotation -= 1

    def visit_Subscript(self, node: cst.Subscript) -> bool:
        if (dotted(node.value) or "").split(".")[-1] != "Literal":
            return True
        node.value.visit(self)
        return False

    def visit_Call(self, node: cst.Call) -> None:
        function = (dotted(node.func) or "").split(".")[-1]
        for place, arg in enumerate(node.args):
            if not isinstance(arg.value, cst.SimpleString):
                continue
            is_type = (function == "cast" and place == 0) or (
                function == "TypeVar" and place > 0 and (arg.keyword is None or arg.keyword.value == "bound")
            )
            if is_type:
                self._read(arg.value)
            else:
                self.names_in_text.append(
                    (arg.value, arg.keyword.value if arg.keyword else function if place == 0 else "")
                )
        self.calls.append(node)

    def visit_Global(self, node: cst.Global) -> None:
        self.mentioned |= {item.name.value for item in node.names}

    def visit_Nonlocal(self, node: cst.Nonlocal) -> None:
        self.mentioned |= {item.name.value for item in node.names}

    def visit_Assign(self, node: cst.Assign) -> None:
        if any(dotted(target.target) == "__all__" for target in node.targets):
            self._export(node.value)

    def visit_AugAssign(self, node: cst.AugAssign) -> None:
        if dotted(node.target) == "__all__":
            self._export(node.value)

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        if dotted(node.target) == "__all__" and node.value is not None:
            self._export(node.value)

    def _export(self, value: cst.BaseExpression) -> None:
        if isinstance(value, cst.List | cst.Tuple | cst.Set):
            self.mentioned |= {
                str(element.value.evaluated_value)
                for element in value.elements
                if isinstance(element.value, cst.SimpleString)
            }

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        if self._in_annotation:
            self._read(node)

    def _read(self, node: cst.SimpleString) -> None:
        """Read a text as an expression; what is no expression is left alone."""
        if node in self.texts or node.prefix or "\\" in node.value:
            return
        try:
            tree = cst.parse_expression(node.raw_value)
        except cst.ParserSyntaxError:
            return
        self.texts[node] = tree
        finder = _Chains()
        tree.visit(finder)
        self._deferred += [(chain, node) for chain in finder.found]

    # -- the end ---------------------------------------------------------------------------------

    def leave_Module(self, original_node: cst.Module) -> None:
        for node, at in self._deferred:
            self._use(node, at)
        for call in self.calls:
            self._note_attribute(call)

    def _use(self, node: cst.BaseExpression, at: cst.CSTNode) -> None:
        name, _, rest = (dotted(node) or "").partition(".")
        scope = self.get_metadata(ScopeProvider, at, None)
        assignments = scope[name] if scope is not None and name in scope else ()
        bindings = [
            self._by_name[one.as_name]
            for one in assignments
            if isinstance(one, ImportAssignment) and one.as_name in self._by_name
        ]
        if not bindings:
            return
        others = [one for one in assignments if isinstance(one, Assignment) and not isinstance(one, ImportAssignment)]
        use = Use(node, at, f".{rest}" if rest else "", bindings, bool(others))
        self.uses[node] = use
        for binding in bindings:
            binding.uses.append(use)

    def _note_attribute(self, call: cst.Call) -> None:
        """Note the attribute in ``patch.object(ray, "get")``, ``monkeypatch.setattr(ray, "get", fake)`` and so on."""
        if len(call.args) < 2 or (dotted(call.func) or "").split(".")[-1] not in ("object", "setattr", "delattr"):
            return
        use, text = self.uses.get(call.args[0].value), call.args[1].value
        if use is not None and isinstance(text, cst.SimpleString):
            use.known_attribute = str(text.evaluated_value)


class _Chains(cst.CSTVisitor):  # type: ignore[misc]
    """Finds the names in an expression, each with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[cst.BaseExpression] = []

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        if dotted(node) is not None:
            self.found.append(node)
            return False
        return True

    def visit_Name(self, node: cst.Name) -> None:
        self.found.append(node)


def dotted(node: cst.CSTNode | None) -> str | None:
    """Return a name with its attributes as text; None for another expression."""
    if isinstance(node, cst.Name):
        return str(node.value)
    if isinstance(node, cst.Attribute):
        above = dotted(node.value)
        return None if above is None else f"{above}.{node.attr.value}"
    return None
