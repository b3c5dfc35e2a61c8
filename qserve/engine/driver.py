"""The deployment behind a DAGDriver whose adapter is user code: it runs the adapter, then the graph."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from qserve.calls.handles import RayServeDAGHandle
from qserve.http.adapter import Adapter, RequestValidationError, validation_response


class AdaptingDriver:
    """Turns requests into the input of a graph.

    Parameters:
      adapter: A function, a pydantic model class, an import string, or None for the request itself.
      app_name: The application whose graphs are run.
    """

    def __init__(self, adapter: Any, app_name: str) -> None:
        self._adapter = Adapter.of(adapter)
        self._app_name = app_name

    async def adapt(self, request: Request, graph: str) -> Any:
        """Run one graph on the adapted request; return a response with status 422 when the request does not fit."""
        try:
            value = await self._adapter(request)
        except RequestValidationError as error:
            return validation_response(error)
        ref = await RayServeDAGHandle(graph, self._app_name).remote(value)
        return await ref
