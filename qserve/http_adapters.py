"""The public door to the HTTP adapters that come with qserve; they are in ``qserve.http.adapters``."""

from __future__ import annotations

from qserve.http.adapters import (
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
