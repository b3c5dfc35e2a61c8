"""Deployments that only stand in a graph, and are never called."""

from __future__ import annotations

from typing import Any

from qserve.define.deployments import deployment


@deployment
class Model:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def forward(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any) -> None:
        pass


@deployment
class Combine:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any) -> None:
        pass


@deployment
class Parent:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


@deployment
def func(*args: Any, **kwargs: Any) -> None:
    return None


@deployment
def combine(*args: Any, **kwargs: Any) -> None:
    return None
