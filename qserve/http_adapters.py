"""The HTTP adapters that come with qserve; this is where users import them from."""

from qserve.http.builtin_adapters import NdArray as NdArray
from qserve.http.builtin_adapters import image_to_ndarray as image_to_ndarray
from qserve.http.builtin_adapters import json_request as json_request
from qserve.http.builtin_adapters import json_to_multi_ndarray as json_to_multi_ndarray
from qserve.http.builtin_adapters import json_to_ndarray as json_to_ndarray
from qserve.http.builtin_adapters import pandas_read_json as pandas_read_json
from qserve.http.builtin_adapters import require_packages as require_packages
from qserve.http.builtin_adapters import starlette_request as starlette_request
