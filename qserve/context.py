"""Import path of the request's context in programs written for Ray Serve."""

from qserve.base.context import request_context as _serve_request_context

__all__ = ["_serve_request_context"]
