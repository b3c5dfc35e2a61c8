"""The deployment behind a DAGDriver whose adapter is user code: it runs the adapter, then the graph."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request

from qserve.calls.handles import RayServeDAGHandle
from qserve.http.adapter import make_adapter
from qserve.http.rejection import RequestValidationError, validation_response


class AdaptingDriver:
    """Turns requests into the input of a graph.

    Parameters:
      adapter: A function, a pydantic model class, an import string, or None for the request itself.
      app_name: The application whose graphs are run.
      graphs: Their names, which are the routes of a driver with several.
      streams: Those whose results come as items.
    """

    def __init__(self, adapter: Any, app_name: str, graphs: Sequence[str], streams: Sequence[str] = ()) -> None:
        self._adapters = {graph: make_adapter(adapter, graph) for graph in graphs}
        self._app_name = app_name
        self._streams = streams

    async def adapt(self, request: Request, graph: str) -> Any:
        """Run one graph on the adapted request; return a response with status 422 when the request does not fit."""

        async def run(value: Any) -> Any:
            handle = RayServeDAGHandle[Any, Any](graph, self._app_name)
            if graph in self._streams:
                return _items_of(handle.options(stream=True).remote(value))
            return await (await handle.remote(value))

        try:
            return await self._adapters[graph](request, run)
        except RequestValidationError as error:
            return validation_response(error)


async def _items_of(stream: Any) -> AsyncIterator[Any]:
    """Pass on the items of a graph; its last step stops when nobody reads them any more."""
    try:
        async for item in stream:
            yield item
    finally:
        stream.cancel()
