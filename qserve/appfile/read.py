"""Reads a config file. The error has a line for each mistake, with its place and what is allowed there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qserve.appfile.model import NO_EFFECT, ApplicationPart, ServeFile, form_of, json_schema
from qserve.appfile.yaml_text import FileError, Node, parse, place, tree_of
from qserve.appfile.yaml_text import Path as Place
from qserve.base.nearest import did_you_mean
from qserve.define.options import ActorOptions, DeploymentOptions
from qserve.define.target import TargetError, split_target

SIZE_LIMIT = 1 << 20
"""The most bytes of a file."""
_INSTEAD = {
    "host": "write it in http_options, for all applications",
    "import_path": "write it in an item of `applications`",
    "init_args": "write it in `bind(...)`, or let a builder take it from `args`",
    "init_kwargs": "write it in `bind(...)`, or let a builder take it from `args`",
    "port": "write it in http_options, for all applications",
    "route_prefix": "write it in the application",
}
"""Where a key belongs that is often written in another place."""
_MISSING = "it is missing"
Mistake = tuple[Place, str]


def read_file(path: Path) -> ServeFile:
    """Read and check a file; nothing is imported.

    Raises:
      FileError: It cannot be read, or something in it is wrong; the message has a line for each mistake.
    """
    try:
        with path.open("rb") as file:
            text = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > SIZE_LIMIT:
        raise FileError(f"{path} is longer than {SIZE_LIMIT >> 20} MiB")
    return _checked(parse(text, str(path)), str(path))


def read_value(value: Any, name: str) -> ServeFile:
    """Check the contents of a file, given as a plain value.

    Parameters:
      name: Stands for the file in messages.

    Raises:
      FileError: As ``read_file``.
    """
    return _checked(tree_of(value), name)


def _checked(root: Node, name: str) -> ServeFile:
    schema = json_schema()
    without_effect: dict[Place, str] = {}
    mistakes = [*_unknown(root, schema, schema, (), without_effect)]
    if not isinstance(root.value, dict):
        raise FileError(f"{place(name, root)}: the file must be a mapping with the key `applications`")
    file = None
    try:
        file = ServeFile.model_validate(_with_effect(root.value, schema, schema))
    except ValidationError as error:
        above = {path[:-1] for path, _ in mistakes}  # what is missing there may be what is misspelt
        mistakes += [one for one in _of_pydantic(error) if one[1] != _MISSING or one[0][:-1] not in above]
    if file is not None:
        mistakes += _mistakes(file)
    if mistakes or file is None:
        lines: dict[tuple[int, int, Place], str] = {}
        for path, message in mistakes:
            node, found = root.at(path)
            rest = path[len(found) :]
            lines.setdefault((node.line, node.column, found), f"{place(name, node, (*found, *rest[:1]))}: {message}")
        raise FileError("\n".join(lines[key] for key in sorted(lines, key=lambda key: key[:2])))
    file._name, file._root, file._without_effect = name, root, without_effect
    return file


# -- keys ------------------------------------------------------------------------------------------


def _unknown(
    node: Node, form: Mapping[str, Any], schema: Mapping[str, Any], path: Place, without_effect: dict[Place, str]
) -> Iterator[Mistake]:
    """Yield the keys that do not exist, and note those that have no effect."""
    form = form_of(schema, form, node.value)
    known = form.get("properties", {})
    for key, child in node.children.items():
        here = (*path, key)
        if isinstance(node.value, list):
            inside = form.get("items", {})
        elif key in known:
            inside = known[key]
            why = inside.get("description", "")
            if why.startswith(NO_EFFECT) and child.value:
                without_effect[here] = why.removeprefix(NO_EFFECT)
        elif form.get("additionalProperties") is False:
            yield here, _advice(str(key), known)
            continue
        else:
            continue
        yield from _unknown(child, inside, schema, here, without_effect)


def _advice(key: str, known: Mapping[str, Any]) -> str:
    if key in _INSTEAD:
        return f"{key!r} does not belong here; {_INSTEAD[key]}"
    hint = did_you_mean(key, known) or f"The keys here are: {', '.join(sorted(known))}"
    return f"unknown key {key!r}. {hint}"


def _with_effect(value: Any, form: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """Return a value without the keys that are unknown or have no effect."""
    form = form_of(schema, form, value)
    if isinstance(value, list):
        return [_with_effect(item, form.get("items", {}), schema) for item in value]
    if not isinstance(value, dict) or form.get("additionalProperties") is not False:
        return value
    known = form["properties"]
    return {
        key: _with_effect(inside, known[key], schema)
        for key, inside in value.items()
        if key in known and known[key].keys() != {"description"}  # no model has those that only have a reason
    }


# -- values ----------------------------------------------------------------------------------------


def _of_pydantic(error: ValidationError, before: Place = ()) -> Iterator[Mistake]:
    for detail in error.errors(include_url=False):
        if detail["type"] == "extra_forbidden":
            continue
        given = "" if detail["type"] == "missing" or isinstance(detail["input"], dict | list) else detail["input"]
        shown = f"; got {given!r}" if given != "" else ""
        message = detail["msg"].removeprefix("Value error, ")
        message = _MISSING if detail["type"] == "missing" else message[:1].lower() + message[1:] + shown
        yield (*before, *detail["loc"]), message


def _mistakes(file: ServeFile) -> Iterator[Mistake]:
    """Yield the mistakes that remain when each value has the right type."""
    applications = file.applications
    yield from _twice([(("applications", i, "name"), app.name) for i, app in enumerate(applications)], "application")
    prefixes = [(("applications", i, "route_prefix"), app.route_prefix) for i, app in enumerate(applications)]
    yield from _twice([(path, prefix) for path, prefix in prefixes if prefix is not None], "application", " is at")
    for number, app in enumerate(applications):
        yield from _of_application(app, ("applications", number))


def _twice(values: Sequence[tuple[Place, str]], what: str, how: str = " is named") -> Iterator[Mistake]:
    seen: dict[str, Place] = {}
    for path, value in values:
        first = seen.setdefault(value, path)
        if first != path:
            at = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first[:-1])[1:]
            yield path, f"another {what}{how} {value!r}: {at}"


def _of_application(app: ApplicationPart, path: Place) -> Iterator[Mistake]:
    try:
        split_target(app.import_path)
    except TargetError as error:
        yield (*path, "import_path"), str(error)
    if app.route_prefix is not None:
        yield from _of_options({"route_prefix": app.route_prefix}, path)
    parts = app.deployments
    yield from _twice([((*path, "deployments", i, "name"), part.name) for i, part in enumerate(parts)], "deployment")
    for number, part in enumerate(parts):
        yield from _of_options(part.options, (*path, "deployments", number))


def _of_options(options: Mapping[str, Any], path: Place) -> Iterator[Mistake]:
    """Check options as ``Deployment.options`` does in code."""
    try:
        DeploymentOptions(**options)
    except ValidationError as error:
        inside = ("ray_actor_options",) if error.title == ActorOptions.__name__ else ()
        yield from _of_pydantic(error, (*path, *inside))
    except (TypeError, ValueError) as error:
        message = str(error)
        named = next((option for option in options if re.search(rf"\b{option}\b", message)), "")
        yield (*path, named) if named else path, message
