"""Types and docstrings of user code in OpenAPI's terms."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any

from pydantic import TypeAdapter
from starlette.responses import Response

from qserve.http.message import BadRequest
from qserve.http.strict_json import loads

Content = dict[str, Any]
"""By media type, what a body is."""

_TEXTS = (str, bytes, bytearray, memoryview, NoneType)
_ANYTHING: Content = {"*/*": {}}
_EXAMPLE = re.compile(r"\n?^[ \t]*Examples?:[ \t]*\n((?:[ \t]+\S.*\n?|[ \t]*\n)+)", re.MULTILINE)
_REFERENCE = "#/components/schemas/{model}"


class Types:
    """Collects types, and writes the schemas of all of them at once, so that they share components."""

    def __init__(self) -> None:
        self._adapters: dict[int, tuple[TypeAdapter[Any], typing.Literal["validation", "serialization"]]] = {}
        self._places: list[tuple[dict[str, Any], int]] = []

    def schema(self, hint: Any, is_input: bool = False) -> dict[str, Any]:
        """Return the schema of a type, which is filled in by ``components``; that of a type without one stays empty."""
        place: dict[str, Any] = {}
        adapter = adapter_of(hint, is_input)
        if adapter is not None:
            number = len(self._adapters)
            self._adapters[number] = adapter, "validation" if is_input else "serialization"
            self._places.append((place, number))
        return place

    def components(self) -> dict[str, Any]:
        """Fill in the schemas, and return those of the models in them by name."""
        inputs = [(number, mode, adapter) for number, (adapter, mode) in self._adapters.items()]
        found, shared = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE)
        for place, number in self._places:
            place.update(next(schema for (key, _), schema in found.items() if key == number))
        components: dict[str, Any] = shared.get("$defs", {})
        return components


def adapter_of(hint: Any, is_input: bool = False) -> TypeAdapter[Any] | None:
    """Return pydantic's adapter of a type; None for one that has no schema."""
    try:
        adapter = TypeAdapter(hint)
        adapter.json_schema(mode="validation" if is_input else "serialization")
    except Exception:  # a type that pydantic does not know, or whose own hooks fail
        return None
    return adapter


def returned_by(function: Any) -> Any:
    """Return what a function is annotated to return; ``inspect.Signature.empty`` if that is not known."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    try:
        return typing.get_type_hints(function, include_extras=True).get("return", inspect.Signature.empty)
    except Exception:  # a name in it is not defined here, or is imported for type checkers only
        return inspect.Signature.empty


def annotation_at(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_meant: Callable[[Any], bool]
) -> Any:
    """Return the annotation of the parameter that takes one of these arguments; Any if that is not known."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception:  # as above, and a builtin has no signature
        return Any
    return next((hints.get(name, Any) for name, value in bound.arguments.items() if is_meant(value)), Any)


def content_of(hint: Any, is_json: bool, types: Types) -> Content:
    """Return the body of a response by the annotation of what made it.

    Parameters:
      is_json: Whether texts are sent as JSON.
    """
    kind = typing.get_origin(hint) or hint
    if inspect.isclass(kind) and issubclass(kind, Response):
        return {kind.media_type: {}} if kind.media_type else _ANYTHING
    if inspect.isclass(kind) and issubclass(kind, Iterator | AsyncIterator):
        return {"text/plain": {"schema": {"type": "string"}}}
    if hint is inspect.Signature.empty or hint is Any:
        return {"application/json": {}} if is_json else _ANYTHING
    if not is_json and kind in _TEXTS:
        return {"text/plain": {"schema": {"type": "string"}}}
    content: Content = {"application/json": {"schema": types.schema(hint)}}
    if not is_json and kind in (typing.Union, UnionType) and any(one in _TEXTS for one in typing.get_args(hint)):
        content["text/plain"] = {"schema": {"type": "string"}}
    return content


def items_of(hint: Any, types: Types) -> Content:
    """Return the body of a response whose items are sent as they come, by the annotation of the generator."""
    kind, given = typing.get_origin(hint) or hint, typing.get_args(hint)
    is_known = inspect.isclass(kind) and issubclass(kind, Iterator | AsyncIterator) and given and given[0] is not Any
    text: Content = {"text/plain": {"schema": {"type": "string"}}}
    if not is_known:
        return {**text, "application/x-ndjson": {}}
    return text if given[0] in _TEXTS else {"application/x-ndjson": {"schema": types.schema(given[0])}}


def text_of(function: Callable[..., Any], owner: Any = None) -> tuple[str, str, list[tuple[Any, ...]]]:
    """Return the first line of a docstring, the rest of it, and its examples.

    A section ``Example:`` holds JSON: what is sent, and behind ``->`` what comes back.

    Parameters:
      owner: The class of a method, whose docstring counts where the method has none.
    """
    text = inspect.cleandoc(getattr(function, "__doc__", None) or getattr(owner, "__doc__", None) or "")
    examples: list[tuple[Any, ...]] = []

    def take(found: re.Match[str]) -> str:
        for example in _examples_in(found[1]):
            examples.append(example)
        return "" if examples else found[0]

    rest = _EXAMPLE.sub(take, text + "\n")
    summary, _, description = rest.strip().partition("\n")
    return summary.strip(), description.strip(), examples


def _examples_in(text: str) -> Iterator[tuple[Any, ...]]:
    """Yield pairs of JSON, each on its own line, or the whole text as one of them; nothing if it is something else."""
    for parts in ([line.split("->") for line in text.splitlines() if line.strip()], [text.split("->")]):
        try:
            found = [tuple(loads(part.encode()) for part in pair) for pair in parts]
        except (BadRequest, UnicodeEncodeError):
            continue
        if all(len(pair) <= 2 for pair in found):
            yield from found
            return
