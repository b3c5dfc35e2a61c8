"""The HTTP adapters that come with qserve; this is where users import them from."""

from __future__ import annotations

from qserve.http.builtin_adapters import (
    NdArray,
    image_to_ndarray,
    json_request,
    json_to_multi_ndarray,
    json_to_ndarray,
    pandas_read_json,
    require_packages,
    starlette_request,
)

__all__ = [
    "NdArray",
    "image_to_ndarray",
    "json_request",
    "json_to_multi_ndarray",
    "json_to_ndarray",
    "pandas_read_json",
    "require_packages",
    "starlette_request",
]
