"""Config files of Ray Serve: they need no change. What in them has no effect, or is refused, is listed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qserve.appfile.model import ServeFile
from qserve.appfile.read import read_file
from qserve.appfile.yaml_text import FileError
from qserve.porting import table
from qserve.porting.plan import Left

_MISTAKE = re.compile(r"(?s).*?:(?P<line>\d+):(?P<column>\d+)(?: (?P<what>[^:]+))?: (?P<why>.*)")
Place = tuple[str | int, ...]


def examine(path: Path) -> list[Left]:
    """Return what qserve refuses in a config file, or reads without effect."""
    try:
        file = read_file(path)
        lines = [f"{file.where(*at)}: {why}" for at, why in _without_effect(file)]
    except FileError as error:
        lines = str(error).splitlines()
    found = [_MISTAKE.fullmatch(line) or line for line in lines]
    return [
        Left(1, 1, path.name, "config", one)
        if isinstance(one, str)
        else Left(int(one["line"]), int(one["column"]), one["what"] or path.name, "config", one["why"])
        for one in found
    ]


def _without_effect(file: ServeFile) -> Iterator[tuple[Place, str]]:
    yield from file.without_effect.items()
    for number in range(len(file.applications)):
        here: Place = ("applications", number)
        part = file.part(number)
        yield from _keys(part.get("runtime_env"), table.RUNTIME_ENV, (*here, "runtime_env"))
        for place, deployment in enumerate(part.get("deployments") or ()):
            inside: Place = (*here, "deployments", place)
            yield from _keys(deployment, table.CALLS["qserve.deployment"], inside)
            actor = deployment.get("ray_actor_options") or {}
            yield from _keys(actor, table.ACTOR_OPTIONS, (*inside, "ray_actor_options"))
            env = (*inside, "ray_actor_options", "runtime_env")
            yield from _keys(actor.get("runtime_env"), table.RUNTIME_ENV, env)


def _keys(given: Any, advice: Mapping[str, table.Advice], path: Place) -> Iterator[tuple[Place, str]]:
    for key in given if isinstance(given, dict) else ():
        if key in advice and given[key]:
            yield (*path, key), advice[key].text
