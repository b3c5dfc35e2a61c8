"""Carries out a plan: imports are replaced where they stand, with their comments, and names where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import libcst as cst

from qserve.porting.plan import Plan, Unit
from qserve.porting.references import dotted


class Editor(cst.CSTTransformer):  # type: ignore[misc]
    """Makes a new module of the old one."""

    def __init__(self, plan: Plan, trees: dict[cst.SimpleString, cst.BaseExpression]) -> None:
        super().__init__()
        self._plan = plan
        self._trees = trees

    # -- names -----------------------------------------------------------------------------------

    def leave_Attribute(self, original_node: cst.Attribute, updated_node: cst.Attribute) -> cst.BaseExpression:
        return self._renamed(original_node, updated_node)

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        return self._renamed(original_node, updated_node)

    def _renamed(self, old: Any, updated: Any) -> cst.BaseExpression:
        new = self._plan.texts.get(old)
        if new is None or new == dotted(old):
            return updated
        return name_of(new).with_changes(lpar=updated.lpar, rpar=updated.rpar)

    def leave_SimpleString(self, original_node: cst.SimpleString, updated_node: cst.SimpleString) -> cst.SimpleString:
        new = self._plan.texts.get(original_node)
        tree = self._trees.get(original_node)
        if new is None and tree is not None:
            changed = tree.visit(self)
            if changed is not tree:
                quote = original_node.quote
                new = f"{quote}{cst.Module([]).code_for_node(changed)}{quote}"
        return updated_node if new is None else updated_node.with_changes(value=new)

    # -- imports ---------------------------------------------------------------------------------

    def leave_ImportFrom(self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom) -> cst.ImportFrom:
        new = self._plan.texts.get(original_node)
        return updated_node if new is None else updated_node.with_changes(module=name_of(new))

    def leave_Module(self, original_node: cst.Module, updated_node: cst.Module) -> cst.Module:
        body, rest = self._block(original_node.body, updated_node.body)
        return updated_node.with_changes(body=body, footer=[*rest, *updated_node.footer])

    def leave_IndentedBlock(
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        body, rest = self._block(original_node.body, updated_node.body)
        return updated_node.with_changes(body=body, footer=[*rest, *updated_node.footer])

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.SimpleStatementSuite:
        return updated_node.with_changes(body=self._small(original_node.body, updated_node.body))

    def _block(self, old: Sequence[Any], updated: Sequence[Any]) -> tuple[list[Any], list[cst.EmptyLine]]:
        """Return the statements of a block, and the comments above those that were removed at its end."""
        body: list[Any] = []
        imported: set[str] = set()
        above: list[cst.EmptyLine] = []
        for before, after in zip(old, updated, strict=True):
            lines = self._lines(before, after)
            for line in lines:
                small = line.body[0] if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 else None
                code = cst.Module([]).code_for_node(small) if isinstance(small, cst.Import) else ""
                is_new = line is not after
                if code in imported and is_new:
                    above = _together(above, line.leading_lines)
                    continue
                imported |= {code} if code else set()
                body.append(line.with_changes(leading_lines=_together(above, line.leading_lines)) if above else line)
                above = []
            if not lines:
                above = _together(above, after.leading_lines)
        return body, [line for line in above if line.comment]

    def _lines(self, old: Any, updated: Any) -> list[Any]:
        """Return the lines that a statement becomes."""
        if not isinstance(old, cst.SimpleStatementLine) or not any(small in self._plan.imports for small in old.body):
            return [updated]
        small = self._small(old.body, updated.body)
        if len(old.body) > 1:
            return [updated.with_changes(body=small)] if small else []
        first, *others = [cst.SimpleStatementLine([one]) for one in small] or [None]
        if first is None:
            return []
        kept = updated.with_changes(body=first.body)
        return [kept, *others]

    def _small(self, old: Sequence[Any], updated: Sequence[Any]) -> list[Any]:
        new: list[Any] = []
        for before, after in zip(old, updated, strict=True):
            new += _statements(before, self._plan.imports[before]) if before in self._plan.imports else [after]
        if new and old[-1] in self._plan.imports:
            new[-1] = new[-1].with_changes(semicolon=old[-1].semicolon)
        return new


def name_of(text: str) -> Any:
    """Return a dotted name as an expression."""
    first, *rest = text.split(".")
    node: cst.Name | cst.Attribute = cst.Name(first)
    for part in rest:
        node = cst.Attribute(node, cst.Name(part))
    return node


def _together(above: Sequence[cst.EmptyLine], below: Sequence[cst.EmptyLine]) -> list[cst.EmptyLine]:
    """Return the lines above a removed statement and those above the next one: all comments, no more empty lines."""
    if not any(line.comment for line in above):
        return [*(below or above)]
    return [*above, *below]


def _statements(old: cst.Import | cst.ImportFrom, parts: Sequence[cst.ImportAlias | Unit]) -> list[Any]:
    """Return the import statements that one becomes: one for each module that names are imported from."""
    here = "" if isinstance(old, cst.Import) else dotted(old.module) or ""
    groups: dict[tuple[bool, str], list[cst.ImportAlias | Unit]] = {}
    for part in parts:
        if isinstance(part, cst.ImportAlias):
            key = (not here, here)
        elif part.name is not None:
            key = (False, part.module)
        else:
            # what replaces a part of an import stays beside its other parts, and what comes to it gets its own line
            key = (True, "" if part.alias is not None and not here else part.module)
        group = groups.setdefault(key, [])
        if part not in group:
            group.append(part)
    made: list[Any] = []
    for (is_import, module), group in groups.items():
        aliases = [_alias(part) for part in group]
        made.append(cst.Import(_last_bare(aliases)) if is_import else _from(old, module, aliases))
    return made


def _alias(part: cst.ImportAlias | Unit) -> cst.ImportAlias:
    if isinstance(part, cst.ImportAlias):
        return part
    asname = None
    if part.asname is not None:
        old = part.alias.asname if part.alias is not None else None
        asname = old.with_changes(name=cst.Name(part.asname)) if old else cst.AsName(cst.Name(part.asname))
    comma = cst.MaybeSentinel.DEFAULT if part.alias is None else part.alias.comma
    return cst.ImportAlias(name_of(part.name or part.module), asname, comma)


def _from(old: cst.Import | cst.ImportFrom, module: str, aliases: list[cst.ImportAlias]) -> cst.ImportFrom:
    if isinstance(old, cst.Import):
        return cst.ImportFrom(name_of(module), _last_bare(aliases))
    changes: dict[str, Any] = {"module": name_of(module), "semicolon": cst.MaybeSentinel.DEFAULT}
    if old.lpar is not None and (len(aliases) > 1 or "#" in cst.Module([]).code_for_node(old)):
        return old.with_changes(names=_closed(aliases, old.names[-1]), **changes)
    return old.with_changes(names=_last_bare(aliases), lpar=None, rpar=None, **changes)


def _closed(aliases: list[cst.ImportAlias], last: cst.ImportAlias) -> list[cst.ImportAlias]:
    """Return names in parentheses, with the last one followed by the same space as before."""
    comma = aliases[-1].comma
    if aliases[-1].evaluated_name == last.evaluated_name or not isinstance(comma, cst.Comma):
        return aliases
    space = comma.whitespace_after
    if isinstance(space, cst.ParenthesizedWhitespace):
        space = space.with_changes(last_line=cst.SimpleWhitespace(""))
    return [*aliases[:-1], aliases[-1].with_changes(comma=comma.with_changes(whitespace_after=space))]


def _last_bare(aliases: list[cst.ImportAlias]) -> list[cst.ImportAlias]:
    return [*aliases[:-1], aliases[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)]
