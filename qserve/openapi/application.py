"""Describe a compiled application: the operations of its driver, of its web application, or of its root."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from qserve.base.log import get_logger
from qserve.define.compile import CompiledApplication
from qserve.exceptions import PayloadTooLarge
from qserve.graph.plan import InputKey, Plan, Slot
from qserve.http import builtin_adapters as built_in
from qserve.http.adapter import load_adapter
from qserve.openapi.document import part_of
from qserve.openapi.typed import Types, adapter_of, annotation_at, content_of, items_of, returned_by, text_of
from qserve.web.ingress import entries_of, openapi_of
from qserve.web.routes import Entry
from qserve.wire.application import DriverRecord
from qserve.wire.description import pack_description

log: Final = get_logger(__name__)

_JSON = "application/json"
ANY_BODY: dict[str, Any] = {_JSON: {}, "text/plain": {"schema": {"type": "string"}}}
"""The body where user code looks at the request itself."""
_WITH_BODY = ("post", "put", "patch")


def describe(built: CompiledApplication) -> bytes:
    """Return the description of an application's HTTP interface, for its record; b"" if none can be made.

    It never raises: user code takes part in it, and its errors must not end a deploy.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of FastAPI and pydantic, about what has no schema
            document = _document(built)
            return b"" if document is None else pack_description(part_of(document, built.name))
    except PayloadTooLarge as error:
        log.warning("the API of application %r is not described in detail: %s", built.name, error)
    except (Exception, SystemExit) as error:
        what = "the API of application %r is not described in detail: %s: %s"
        log.warning(what, built.name, type(error).__name__, str(error).partition("\n")[0][:500])
    return b""


def _document(built: CompiledApplication) -> dict[str, Any] | None:
    if built.ingress.route_prefix is None:
        return None
    if built.driver is not None:
        return _of_driver(built)
    root = built.ingress.func_or_class
    document = openapi_of(root)
    if document is not None:
        return document
    entries = entries_of(root)
    if entries:
        return _of_entries(entries)
    if hasattr(root, "__qserve_start__"):  # another web application: only a replica has its routes
        return None
    output = _output(root, "__call__")
    types = Types()
    operations = _operations({}, content_of(returned_by(output.function), False, types))
    for operation in operations.values():
        _add_text(operation, output)
    return {"paths": {"": operations}, "components": {"schemas": types.components()}}


def _of_entries(entries: list[Entry]) -> dict[str, Any]:
    """Describe a web application without a document of its own by its routes, and by what their functions say."""
    types, paths = Types(), dict[str, dict[str, Any]]()
    for entry in entries:
        content = content_of(returned_by(entry.function), False, types)
        operation: dict[str, Any] = {
            "responses": {"200": {"description": "The result.", "content": content}},
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {**schema}}
                for name, schema in entry.parameters.items()
            ],
        }
        if entry.method in _WITH_BODY:
            operation["requestBody"] = {"content": copy.deepcopy(ANY_BODY)}
        _add_text(operation, _Output(entry.function, entry.owner))
        paths.setdefault(entry.path, {}).setdefault(entry.method, operation)
    return {"paths": paths, "components": {"schemas": types.components()}}


class _Output(NamedTuple):
    """What makes a response: a function, or a method of a class."""

    function: Callable[..., Any]
    owner: Any = None


def _of_driver(built: CompiledApplication) -> dict[str, Any] | None:
    if isinstance(built.adapter, str) and re.split("[:.](?=[^:.]*$)", built.adapter)[0] not in sys.modules:
        return None  # replicas import it, and perhaps only they can
    adapter = load_adapter(built.adapter) or built_in.starlette_request
    driver = built.driver or DriverRecord()
    routes = driver.routes or ("",)
    types, paths, schemas = Types(), dict[str, Any](), dict[str, Any]()
    returned = {route: returned_by(_output_of(built, route).function) for route in routes}
    content = {
        route: items_of(hint, types) if route in driver.streams else content_of(hint, True, types)
        for route, hint in returned.items()
    }
    if inspect.isfunction(adapter) and adapter in _TAKEN:
        for route in routes:
            takes = {kind: {"schema": schema(built, route, types)} for kind, schema in _TAKEN[adapter].items()}
            paths[route] = _operations(takes, content[route])
        schemas = types.components()
    else:
        module: Any = importlib.import_module("qserve.http.user_adapter")  # it imports FastAPI
        models = {route: hint for route, hint in returned.items() if _JSON in content[route] and adapter_of(hint)}
        paths, schemas = module.openapi_of(adapter, {route: models.get(route) for route in routes})
        for route, item in paths.items():
            for operation in item.values():
                operation.pop("operationId")
                if route not in models:
                    operation["responses"]["200"]["content"] = content[route]
    for route, item in paths.items():
        for operation in item.values():
            _add_text(operation, _output_of(built, route), adapter)
    return {"paths": paths, "components": {"schemas": schemas}}


def _output_of(built: CompiledApplication, route: str) -> _Output:
    """Return what makes the result of a graph."""
    plan = built.graphs[route]
    if not isinstance(plan.output, int):
        return _Output(lambda: None)  # its input
    step = plan.steps[plan.output]
    body = next(one.func_or_class for one in built.deployments if one.name == step.deployment)
    return _output(body, step.method)


def _output(body: Any, method: str) -> _Output:
    return _Output(_method_of(body, method), body) if inspect.isclass(body) else _Output(body)


def _method_of(cls: type, name: str) -> Any:
    """Return a method as a function; not that of the metaclass, by which a class itself is called."""
    found = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
    return getattr(found, "__func__", found)


def _operations(takes: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return the operations of a path: POST, and GET if it may be called without a body.

    Parameters:
      takes: The body that it needs by media type; empty if user code looks at the request itself.
    """
    result = {"responses": {"200": {"description": "The result.", "content": content}}}
    if takes:
        return {"post": {**result, "requestBody": {"required": True, "content": takes}}}
    return {"get": {**result}, "post": {**result, "requestBody": {"content": copy.deepcopy(ANY_BODY)}}}


def _add_text(operation: dict[str, Any], output: _Output, adapter: Any = None) -> None:
    """Give an operation the texts and the examples of the docstrings of what makes its input and its result."""
    summary, description, examples = text_of(output.function, output.owner)
    texts = [description]
    if adapter is not None and not getattr(adapter, "__module__", "").startswith("qserve."):
        *of_adapter, more = text_of(adapter)
        texts += of_adapter
        examples += more
    operation["summary"] = summary or getattr(output.owner or output.function, "__name__", "")
    operation["description"] = "\n\n".join(filter(None, texts))
    for content, number in (
        (operation.get("requestBody", {}).get("content", {}), 0),
        (operation["responses"].get("200", {}).get("content", {}), 1),
    ):
        values = [example[number] for example in examples if len(example) > number]
        if values and _JSON in content:
            content[_JSON]["examples"] = {str(index): {"value": value} for index, value in enumerate(values, 1)}


# -- what the adapters that come with qserve take --------------------------------------------------


def _parts_of_input(built: CompiledApplication, route: str, types: Types) -> dict[str, Any]:
    """Return the schema of a graph's input as far as its steps show it: those of its keys that they take."""
    plan = built.graphs[route]
    parts = [source for source in plan.feeds if isinstance(source, InputKey)]
    if parts == [InputKey()]:
        return types.schema(_hint_of(built, plan, InputKey()), is_input=True)
    if not parts or not all(part.kind == "item" and isinstance(part.key, str) for part in parts):
        return {}
    properties = {str(part.key): types.schema(_hint_of(built, plan, part), is_input=True) for part in parts}
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _hint_of(built: CompiledApplication, plan: Plan, source: InputKey) -> Any:
    """Return the annotation of the parameter that takes a part of the input; Any if it is not known, or has several."""
    targets = plan.feeds[source]
    if len(targets) != 1:
        return Any
    ((number, slot),) = targets
    step = plan.steps[number]
    body = next(one.func_or_class for one in built.deployments if one.name == step.deployment)
    function, args = body, step.args
    if inspect.isclass(body):
        function = _method_of(body, step.method)
        is_static = isinstance(inspect.getattr_static(body, step.method, None), staticmethod)
        args = step.args if is_static else (None, *step.args)
    return annotation_at(function, args, step.kwargs, lambda value: isinstance(value, Slot) and value.index == slot)


def _array(built: CompiledApplication, route: str, types: Types) -> dict[str, Any]:
    return types.schema(built_in.NdArray, is_input=True)


def _arrays(built: CompiledApplication, route: str, types: Types) -> dict[str, Any]:
    return types.schema(dict[str, built_in.NdArray], is_input=True)


def _image(built: CompiledApplication, route: str, types: Types) -> dict[str, Any]:
    return {"type": "object", "properties": {"img": {"type": "string", "format": "binary"}}, "required": ["img"]}


def _table(built: CompiledApplication, route: str, types: Types) -> dict[str, Any]:
    return {}


_TAKEN: dict[Any, dict[str, Callable[[CompiledApplication, str, Types], dict[str, Any]]]] = {
    built_in.starlette_request: {},
    built_in.json_request: {_JSON: _parts_of_input},
    built_in.json_to_ndarray: {_JSON: _array},
    built_in.json_to_multi_ndarray: {_JSON: _arrays},
    built_in.image_to_ndarray: {"multipart/form-data": _image},
    built_in.pandas_read_json: {_JSON: _table},
}
"""The bodies that the adapters take which come with qserve."""
