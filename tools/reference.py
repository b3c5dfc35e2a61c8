#!/usr/bin/env python3
"""Write the reference of the documentation's site: public names from their docstrings, settings, options and commands.

griffe reads the source without importing it. `make docs` runs this (tools/docs_site.py).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from itertools import chain
from pathlib import Path

import click
import griffe

from qserve import exceptions
from qserve.__main__ import main
from qserve.base import settings as base_settings
from qserve.base.settings import Settings
from qserve.define import task_consumers
from qserve.exceptions import QserveException

ROOT = Path(__file__).parents[1]
_LINE = 84
_REFERENCE = re.compile(r"(?:same as|see) ``([\w.]+)``", re.I)
_CONSTANTS = {name: value for name, value in (vars(base_settings) | vars(task_consumers)).items() if name.isupper()}
_HEADING = re.compile(r"^## `(.+)` \{#(.+)\}")
MODULES = (
    *("config", "dag", "deployment_graph", "drivers", "exceptions", "handle", "http_adapters", "metrics", "schema"),
    *("task_consumer", "task_processor"),
)
"""The modules of qserve that users import from."""

PAGES: dict[str, tuple[str, str, str]] = {
    "define": (
        "Define an application",
        "What you write: deployments, the graphs that connect them, and what runs inside of a replica.",
        """
        deployment Deployment ingress batch multiplexed get_multiplexed_model_id DAGDriver InputNode
        dag.InputAttributeNode dag.DAGNode deployment_graph.ClassNode deployment_graph.MethodNode
        deployment_graph.FunctionNode build Application dag.dag_to_dot dag.plot
        """,
    ),
    "serve": (
        "Serve it",
        "Start, replace, inspect and stop applications from a Python program.",
        "run run_many RunTarget start status delete shutdown shutdown_async init is_initialized",
    ),
    "call": (
        "Call it",
        "Handles, what their calls return, and how to wait for it: in the same program or in another one.",
        """
        get_app_handle get_deployment_handle connect Client handle.DeploymentHandle handle.DeploymentResponse
        handle.DeploymentResponseGenerator handle.RayServeSyncHandle handle.RayServeDeploymentHandle handle.RefTask
        handle.RayServeDAGHandle handle.HandleOptions handle.Ref get wait accepted cancel submit_many get_ref put Event
        """,
    ),
    "inside": (
        "Inside a deployment",
        "What the code of a deployment can ask about its request and its replica, and what it can say.",
        """
        get_request_context base.context.RequestContext get_replica_context base.context.ReplicaContext call_context
        get_trace_context progress wire.progress.Progress
        """,
    ),
    "adapters": (
        "HTTP adapters",
        "An adapter makes the input of a graph from an HTTP request, as in `DAGDriver.bind(graph, json_request)`.",
        """
        http_adapters.json_request http_adapters.starlette_request http_adapters.json_to_ndarray
        http_adapters.json_to_multi_ndarray http_adapters.NdArray http_adapters.image_to_ndarray
        http_adapters.pandas_read_json http_adapters.require_packages
        """,
    ),
    "tasks": (
        "Task consumers",
        "Deployments that run the tasks of a Celery queue, and what sends them tasks.",
        """
        task_consumer.task_consumer task_consumer.task_handler schema.TaskProcessorConfig schema.CeleryAdapterConfig
        schema.TaskResult task_consumer.instantiate_adapter_from_config task_processor.TaskProcessorAdapter
        task_processor.CeleryTaskProcessorAdapter task_processor.AsyncCapability
        """,
    ),
    "metrics": (
        "Metrics of your own",
        "Metrics that the code of a deployment counts; Prometheus reads them from gateways and workers.",
        "metrics.Counter metrics.Gauge metrics.Histogram",
    ),
    "configuration": (
        "Configuration classes",
        "Values of options. A dict with the same keys does as well.",
        """
        config.AutoscalingConfig config.AutoscalingPolicy config.AutoscalingContext config.AggregationFunction
        config.BackpressureConfig schema.LoggingConfig config.HTTPOptions config.ProxyLocation
        """,
    ),
    "status": (
        "Status",
        "What `qserve.status()` returns.",
        """
        schema.ServeStatus schema.ApplicationStatusOverview schema.DeploymentStatusOverview schema.ApplicationStatus
        schema.DeploymentStatus schema.DeploymentStatusTrigger
        """,
    ),
}
"""The pages, each with its title, a sentence, and the names on it, which are those of qserve or of its modules."""

RECEIVED = {
    *("Application", "Client", "DAGNode", "Deployment", "DeploymentHandle", "DeploymentResponse", "Event", "Progress"),
    *("DeploymentResponseGenerator", "InputAttributeNode", "RayServeDAGHandle", "RayServeDeploymentHandle", "Ref"),
    *("RayServeSyncHandle", "RefTask", "ReplicaContext", "RequestContext", "AutoscalingContext", "TaskResult"),
    *(
        "ClassNode",
        "MethodNode",
        "FunctionNode",
        "ServeStatus",
        "ApplicationStatusOverview",
        "DeploymentStatusOverview",
    ),
}
"""Classes whose objects users get and do not make."""
INTERNAL = {
    *("Application.rebuild", "DAGNode.bind", "Event.encode", "Event.decode", "HTTPOptions.of", "HTTPOptions.variables"),
    *("LoggingConfig.of", "LoggingConfig.given", "LoggingConfig.variables", "Ref.ask_for_acceptance", "Ref.plane"),
    *(
        "Ref.ask_for_events",
        "Ref.cancel_with_caller",
        "Ref.error",
        "Ref.follow",
        "Ref.is_known_to_caller",
        "Ref.made_by",
    ),
    *("Ref.outcome", "Ref.raise_for_end", "Ref.refusal", "Ref.resolved", "Ref.settle", "Ref.share", "Ref.takes"),
    *("RequestContext.cancel", "RequestContext.when_cancelled"),
}
"""Methods for qserve itself."""


@cache
def package() -> griffe.Object:
    """Return the source of qserve; its parts are found by their paths: ``package()["handle.Ref"]``."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    source = loader.load("qserve")
    loader.resolve_aliases()
    return source


def found(path: str) -> griffe.Object:
    """Return what a path below qserve stands for, behind imports, second names and ``DAGDriver``."""
    thing = package()[path]
    thing = thing.final_target if thing.is_alias else thing
    value = getattr(thing, "value", None)
    if isinstance(value, griffe.ExprCall) and thing.name == "DAGDriver":
        value = value.arguments[0]
    return found(f"{thing.parent.path}.{value.name}".partition(".")[2]) if isinstance(value, griffe.ExprName) else thing


@cache
def public_names() -> Mapping[str, griffe.Object]:
    """Return what users can import, by its path below qserve."""
    stub = (ROOT / "qserve" / "__init__.pyi").read_text()
    paths = re.findall(r"^from \S+ import \w+ as (\w+)$", stub, re.M)
    for name in MODULES:
        module = package()[name]
        exported = module.exports or re.findall(r" as (\w+)$", module.source, re.M)
        own = [one.name for one in module.members.values() if one.is_public and not (one.is_alias or one.is_module)]
        paths += [f"{name}.{member}" for member in dict.fromkeys([*exported, *own]) if not member.startswith("_")]
    return {path: found(path) for path in paths}


@cache
def documented() -> Mapping[str, griffe.Object]:
    """Return what has an entry on one of the pages, by its path below qserve."""
    return {path: found(path) for _, _, paths in PAGES.values() for path in paths.split()}


def parts_of(thing: griffe.Object) -> list[griffe.DocstringSection]:
    """Return the parts of a docstring. What it does not say itself is that of what it refers to.

    It may say "the same as ``x``" or "see ``x``". A method without a docstring has that of the method that it replaces.
    """
    parts = _own_parts(thing)
    referred = _REFERENCE.search(parts[0].value) if parts and thing.is_function else None
    other = _named(referred[1], thing) if referred else None
    kinds = {part.kind for part in parts}
    return parts + [part for part in (parts_of(other) if other else []) if part.kind not in kinds]


def _own_parts(thing: griffe.Object) -> list[griffe.DocstringSection]:
    named = [thing, *(base.members[thing.name] for base in _bases(thing.parent) if thing.name in base.members)]
    docstring = next((one.docstring for one in named if one.docstring), None)
    options = {"returns_multiple_items": False, "returns_named_value": False, "warnings": False}
    return docstring.parse("google", **options) if docstring else []


def _named(name: str, near: griffe.Object) -> griffe.Object | None:
    """Return the function that a docstring names: a method beside it, or one with an entry."""
    owner, _, method = name.rpartition(".")
    if owner == "qserve":
        return documented().get(method)
    owners = [found(path) for path in documented() if path.rpartition(".")[2] == owner] if owner else [near.parent]
    inside = (one.members[method] for own in owners for one in [own, *_bases(own)] if method in one.members)
    return next(inside, documented().get(name))


def described_parameters(thing: griffe.Object) -> list[tuple[str, str]]:
    """Return the names of the parameters in a docstring, several of them where they share a text, and their texts."""
    every = (part.value for part in parts_of(thing) if part.kind is griffe.DocstringSectionKind.parameters)
    return [(one.name, one.description) for one in chain(*every)]


def _bases(thing: griffe.Object | None) -> list[griffe.Class]:
    return thing.mro() if isinstance(thing, griffe.Class) else []


def parameters(thing: griffe.Object) -> list[griffe.Parameter]:
    """Return the parameters of a function, or those of a class: of its constructor, or its fields."""
    if not isinstance(thing, griffe.Class):
        return [one for one in thing.parameters if one.name not in ("self", "cls")]
    of_model = any(str(base).endswith("BaseModel") for base in thing.bases)
    constructors = [one.members["__init__"] for one in [thing, *_bases(thing)] if "__init__" in one.members]
    if constructors and not of_model:
        return parameters(constructors[0])
    kind = griffe.ParameterKind.keyword_only if of_model else griffe.ParameterKind.positional_or_keyword
    known = [one for one in thing.members.values() if one.is_attribute and one.annotation and one.name[0] != "_"]
    known = [one for one in known if "property" not in one.labels and "ClassVar" not in str(one.annotation)]
    return [griffe.Parameter(one.name, annotation=one.annotation, kind=kind, default=one.value) for one in known]


def default_of(parameter: griffe.Parameter) -> str:
    """Return a default as it would be given: of ``Field(default=1, ge=0)`` that is ``1``, and a constant's value."""
    source = "" if parameter.default is None else str(parameter.default)
    call = ast.parse(source, mode="eval").body if "ield(" in source else None
    if isinstance(call, ast.Call):
        given = {one.arg: ast.unparse(one.value) for one in call.keywords}
        source = given.get("default", {"dict": "{}", "list": "[]"}.get(given.get("default_factory", ""), ""))
    return repr(_CONSTANTS[source]) if source in _CONSTANTS else source


def members(thing: griffe.Object) -> list[griffe.Object]:
    """Return the public methods and properties of a class, with those of bases that have no entry themselves."""
    entries = {one.path for one in documented().values()}
    named: dict[str, griffe.Object] = {}
    for owner in [thing, *(base for base in _bases(thing) if base.path not in entries)] if thing.is_class else []:
        for name, member in owner.members.items():
            is_public = not name.startswith("_") and f"{owner.name}.{name}" not in INTERNAL
            if is_public and (member.is_function or "property" in member.labels):
                named.setdefault(name, member)
    return [*named.values()]


def signature(thing: griffe.Object, name: str) -> str:
    """Return how a function or class is called, with types; parameters that begin with ``_`` are left out."""
    kinds, parts, last = griffe.ParameterKind, list[str](), None
    for one in [one for one in parameters(thing) if not one.name.startswith("_")] + [None]:
        if last is kinds.positional_only and (one is None or one.kind is not last):
            parts.append("/")
        if one is None:
            break
        if one.kind is kinds.keyword_only and last not in (kinds.keyword_only, kinds.var_positional):
            parts.append("*")
        stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(one.kind, "")
        default = default_of(one)
        typed = f"{stars}{one.name.lstrip('*')}" + (f": {one.annotation}" if one.annotation else "")
        parts.append(f"{typed} = {default}" if default and not stars else typed)
        last = one.kind
    arrow = f" -> {thing.returns}" if thing.is_function and thing.returns else ""
    one_line = f"{name}({', '.join(parts)}){arrow}"
    return (
        one_line
        if len(one_line) <= _LINE
        else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){arrow}"])
    )


@cache
def places() -> Mapping[str, str]:
    """Return where each name is that a docstring may mention: the page and the anchor."""
    found_at = dict[str, str]()
    for page, (_, _, paths) in PAGES.items():
        for path in paths.split():
            name, thing = path.rpartition(".")[2], found(path)
            place = f"{page}.md#qserve.{path}"
            found_at |= {name: place, f"qserve.{path}": place, thing.path: place}
            found_at |= {f"{name}.{member.name}": f"{place}.{member.name}" for member in members(thing)}
    found_at |= {"DeploymentOptions": "options.md", "Settings": "settings.md"}
    for path, thing in public_names().items():
        place = f"errors.md#qserve.exceptions.{thing.name}" if path.startswith("exceptions.") else found_at[thing.path]
        found_at |= {f"qserve.{path}": place, path.rpartition(".")[2]: place}
    return found_at


def prose(text: str) -> str:
    """Return the text of a docstring as Markdown, in which names lead to their entries."""

    def code(match: re.Match[str]) -> str:
        place = places().get(match[1].removesuffix("()"))
        return f"[`{match[1]}`]({place})" if place else f"`{match[1]}`"

    return re.sub(r"``([^`]+)``", code, text)


def bullets(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    for head, text in items:
        yield f"- {head}: " + prose(text).replace("\n", "\n  ")


def _typed(names: str, known: Iterable[griffe.Parameter]) -> str:
    """Return the names of parameters with their types and defaults."""
    by_name = {one.name.lstrip("*"): one for one in known}
    shown = []
    for name in names.split(", "):
        one = by_name[name]
        about = [f"`{one.annotation}`"] if one.annotation else []
        about += [f"default `{default_of(one)}`"] if default_of(one) else []
        shown.append(f"**`{name}`**" + f" ({', '.join(about)})" * bool(about))
    return ", ".join(shown)


def _returned(thing: griffe.Object, returned: griffe.DocstringReturn) -> str:
    """Return what a docstring says of a result; griffe takes what is before a colon for a type."""
    is_type = str(returned.annotation) == str(thing.returns)
    return returned.description if is_type else f"{returned.annotation}: {returned.description}"


def _linked(names: str) -> str:
    return ", ".join(prose(f"``{name}``") for name in names.strip("()").split(", "))


def examples(thing: griffe.Object) -> list[str]:
    """Return the code of the examples in a docstring."""
    admonitions = [part.value for part in parts_of(thing) if part.kind is griffe.DocstringSectionKind.admonition]
    return [one.contents for one in admonitions if one.kind == "example"]


def document(thing: griffe.Object) -> Iterator[str]:
    """Yield a docstring as Markdown, with types and defaults from the source."""
    kinds = griffe.DocstringSectionKind
    for part in parts_of(thing):
        if part.kind is kinds.text:
            yield prose(part.value)
        elif part.kind is kinds.parameters:
            yield "**Fields**" if thing.name in RECEIVED else "**Parameters**"
            yield "\n".join(
                bullets((_typed(names, parameters(thing)), text) for names, text in described_parameters(thing))
            )
        elif part.kind is kinds.returns:
            yield f"**Returns**\n\n{prose(_returned(thing, part.value[0]))}"
        elif part.kind is kinds.raises:
            yield "**Raises**"
            yield "\n".join(bullets((_linked(str(one.annotation)), one.description) for one in part.value))
        elif part.kind is kinds.admonition and part.value.kind == "example":
            yield f"**Example**\n\n```python\n{part.value.contents.rstrip()}\n```"
        else:
            raise ValueError(f"{thing.path}: its docstring has a part that the reference does not know: {part.kind}")


def entry(path: str) -> Iterator[str]:
    """Yield the entry of a name: what it is called with, its docstring, its other names, its methods."""
    thing, name = found(path), path.rpartition(".")[2]
    yield f"## `{name}` {{#qserve.{path}}}"
    is_made = name not in RECEIVED and not is_enum(thing)
    called = signature(thing, f"qserve.{path}{'.bind' * (name == 'DAGDriver')}") if is_made else f"class qserve.{path}"
    yield f"```python\n{called}\n```"
    yield from document(thing)
    if is_enum(thing):
        yield "Values: " + ", ".join(f"`{one.name}`" for one in thing.members.values() if one.is_attribute) + "."
    others = [f"`qserve.{other}`" for other, same in public_names().items() if same is thing and other != path]
    if others:
        yield f"Other names: {', '.join(others)}."
    properties = [one for one in members(thing) if one.is_attribute]
    if properties:
        yield "**Attributes**"
        told = ((f"**`{one.name}`** (`{one.annotation}`)", parts_of(one)[0].value) for one in properties)
        yield "\n".join(bullets(told))
    for one in members(thing):
        if one.is_function:
            yield f'### `{name}.{one.name}` {{#qserve.{path}.{one.name} data-toc-label=".{one.name}"}}'
            yield f"```python\n{signature(one, one.name)}\n```"
            yield from document(one)


def is_enum(thing: griffe.Object) -> bool:
    """Return whether it is a class of names for values."""
    return thing.is_class and any(str(base).endswith("Enum") for base in thing.bases)


def errors() -> Iterator[str]:
    yield "# Errors"
    yield (
        "Errors of qserve are instances of `QserveException`. When one ends an HTTP request, the gateway sends its"
        " status, and its code in a JSON body."
    )
    tree = (exceptions.__doc__ or "").replace("``", "")
    yield f"```text\n{tree[tree.index('QserveException') : tree.rindex('GetTimeoutError')].rstrip()}\n```"
    for thing in dict.fromkeys(thing for path, thing in public_names().items() if path.startswith("exceptions.")):
        yield f"## `{thing.name}` {{#qserve.exceptions.{thing.name}}}"
        yield from document(thing)
        kind = getattr(exceptions, thing.name)
        if issubclass(kind, QserveException):
            again = " The same request may succeed later." if kind.retryable else ""
            yield f"HTTP status {kind.status}, code `{kind.code}`.{again}"


def options() -> Iterator[str]:
    thing = package()["define.options.DeploymentOptions"]
    defaults = {one.name: one.default for one in parameters(thing)}
    defaults["max_ongoing_requests"] = defaults["max_concurrent_queries"]
    accepted = parameters(package()["define.options.Options"])
    known = [griffe.Parameter(one.name, annotation=one.annotation, default=defaults[one.name]) for one in accepted]
    yield "# Options of a deployment"
    yield (
        "Pass them to `@serve.deployment(...)` or `Class.options(...)`, or write them in a [config file](../config.md)."
    )
    described = described_parameters(thing)
    yield "\n".join(bullets((_typed(names, known), text) for names, text in described))
    named = ", ".join(names for names, _ in described).split(", ")
    others = [f"`{one.name}`" for one in known if one.name not in named]
    yield f"Accepted for programs written for Ray Serve, and without effect, as a warning says: {', '.join(others)}."


def settings() -> Iterator[str]:
    thing = package()["base.settings.Settings"]
    yield "# Settings"
    yield (
        "Variables of the environment for qserve's processes and for Python programs. A variable with `_FILE` behind"
        " its name names a file that has the value. [Operations](../operations.md#gateways) has the variables of"
        " gateways, and [Docker compose](../deploy/compose.md) says which service reads which."
    )
    defaults = {one.name: _as_variable(one.default) for one in fields(Settings)}
    told = ((f"**`QSERVE_{name.upper()}`** ({defaults[name]})", text) for name, text in described_parameters(thing))
    yield "\n".join(bullets(told))


def _as_variable(default: object) -> str:
    """Return a default as a variable of the environment would say it."""
    if default is None or default in ((), ""):
        return "not set"
    if isinstance(default, bool):
        return f"default `{int(default)}`"
    for size, unit in ((1 << 30, "gb"), (1 << 20, "mb"), (1 << 10, "kb")):
        if isinstance(default, int) and default >= size and default % size == 0:
            return f"default `{default // size}{unit}`"
    return f"default `{default:g}`" if isinstance(default, float) else f"default `{default}`"


def commands() -> Iterator[str]:
    yield "# Commands"
    pending: list[tuple[str, click.Command]] = [("qserve", main)]
    while pending:
        name, command = pending.pop(0)
        context = click.Context(command, info_name=name, terminal_width=86, max_content_width=86)
        yield f"## `{name}`"
        yield f"```text\n{command.get_help(context)}\n```"
        if isinstance(command, click.Group):
            below = ((f"{name} {one}", command.get_command(context, one)) for one in command.list_commands(context))
            pending[:0] = [(path, one) for path, one in below if one is not None and not one.hidden]


def write(folder: Path) -> None:
    """Write all pages into a folder, and a list of all names behind the text of its index.md."""
    pages = {
        page: [f"# {title}", intro, *chain(*map(entry, paths.split()))] for page, (title, intro, paths) in PAGES.items()
    }
    pages |= {made.__name__: [*made()] for made in (errors, options, settings, commands)}
    for page, parts in pages.items():
        (folder / f"{page}.md").write_text("\n\n".join(parts) + "\n")
    listed = []
    for page, parts in pages.items():
        names = [f"[`{name}`]({page}.md#{anchor})" for part in parts for name, anchor in _HEADING.findall(part)]
        listed.append(f"- [{parts[0].removeprefix('# ')}]({page}.md): {', '.join(names)}".removesuffix(": "))
    index = folder / "index.md"
    index.write_text("\n\n".join([index.read_text(), "## All names", "\n".join(listed)]) + "\n")
