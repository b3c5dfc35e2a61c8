"""The HTTP adapters that come with qserve; users import them from ``qserve.http_adapters``.

| adapter               | takes                                    | returns                      |
| --------------------- | ---------------------------------------- | ---------------------------- |
| ``starlette_request`` | any request                              | the request itself (default) |
| ``json_request``      | a JSON body                              | the parsed JSON              |
| ``json_to_ndarray``   | ``{"array": ..., "shape": ..., "dtype": ...}`` | a numpy array          |
| ``json_to_multi_ndarray`` | a dict of name to the above          | a dict of name to array      |
| ``image_to_ndarray``  | a multipart form with the file ``img``   | a numpy array                |
| ``pandas_read_json``  | a JSON body, ``read_json``'s options in the query | a pandas DataFrame  |

numpy, pandas and Pillow are needed only when an adapter that uses them is called.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import io
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field
from starlette.requests import Request

from qserve.http.message import EMPTY_BODY
from qserve.http.rejection import unreadable

_F = TypeVar("_F", bound=Callable[..., Any])
_Numbers = list[float]
_PIP_NAMES = {"PIL": "Pillow"}


def require_packages(packages: list[str]) -> Callable[[_F], _F]:
    """Declare which optional packages a function needs; they are checked when it is called.

    Parameters:
      packages: Their import names.

    Returns:
      A decorator for a sync or async function.

    Raises:
      ImportError: The decorated function is called, and a package is missing.

    Example:
      from qserve.http_adapters import require_packages

      @require_packages(["json"])
      def parse(body: str) -> list[int]:
          import json

          return json.loads(body)

      print(parse("[1, 2]"))  # [1, 2]
    """

    def decorate(function: _F) -> _F:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def checked(*args: Any, **kwargs: Any) -> Any:
                _check(function, packages)
                return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def checked(*args: Any, **kwargs: Any) -> Any:
                _check(function, packages)
                return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate


def _check(function: Callable[..., Any], packages: list[str]) -> None:
    missing = [name for name in packages if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        install = " ".join(_PIP_NAMES.get(name, name) for name in missing)
        raise ImportError(
            f"{function.__qualname__} requires packages {packages} to run but {missing} are "
            f"missing. Please `pip install` them where the replicas run: pip install {install}"
        )


_ITEM_BYTES, _TEXT_BYTES = 32, 1 << 24
"""How long an item of an array may be, as the longest of numpy's numbers; and all together, if they are longer."""


class NdArray(BaseModel):
    """A numpy array in JSON.

    Parameters:
      array: Numbers in a list nested one to four deep.
      shape: The shape of the array; None keeps that of the list.
      dtype: The type of its items, such as ``"int"``; None means float.

    Example:
      from qserve.http_adapters import NdArray

      print(NdArray(array=[1.0, 2.0, 3.0, 4.0], shape=[2, 2], dtype="int").to_numpy().tolist())  # [[1, 2], [3, 4]]
    """

    array: _Numbers | list[_Numbers] | list[list[_Numbers]] | list[list[list[_Numbers]]] = Field(
        description="Numbers, in a list nested one to four deep."
    )
    shape: list[int] | None = Field(default=None, description="The array's shape; the list's when left out.")
    dtype: str | None = Field(default=None, description="numpy's name of the type; float64 when left out.")

    def to_numpy(self) -> Any:
        """Return the array itself.

        Returns:
          A ``numpy.ndarray``.

        Raises:
          ValueError: The numbers do not have that shape, or numpy has no such type, or its items are too long.
        """
        numpy = importlib.import_module("numpy")
        array = numpy.array(self.array)
        if self.shape:
            array = array.reshape(*self.shape)
        if not self.dtype:
            return array
        kind = numpy.dtype(self.dtype)
        if kind.itemsize * array.size > max(_ITEM_BYTES * array.size, _TEXT_BYTES):  # "U100000000" is 400 MB an item
            raise ValueError(f"dtype {self.dtype!r} makes {kind.itemsize * array.size} bytes of {array.size} numbers")
        return array.astype(kind)


def starlette_request(request: Request) -> Request:
    """Return the request itself; the default of ``DAGDriver``.

    Parameters:
      request: A Starlette request.

    Returns:
      The same request. The graph's first step gets it with its body.

    Example:
      from qserve.http_adapters import starlette_request

      app = serve.DAGDriver.bind(Greeter.bind(), http_adapter=starlette_request)
    """
    return request


async def json_request(request: Request) -> Any:
    """Return the request's JSON body, of any type.

    Parameters:
      request: A Starlette request with a JSON body, whatever its ``Content-Type`` says.

    Returns:
      What the JSON stands for: a dict, list, text, number, bool or None.

    Example:
      from qserve.dag import InputNode
      from qserve.http_adapters import json_request

      with InputNode() as body:
          app = serve.DAGDriver.bind(Greeter.bind().letters.bind(body["word"]), http_adapter=json_request)
    """
    return await request.json()


@require_packages(["numpy"])
def json_to_ndarray(payload: NdArray) -> Any:
    """Return a numpy array from a JSON body ``{"array": [1, 2], "shape": [2, 1], "dtype": "int"}``.

    Parameters:
      payload: The body; shape and dtype may be left out.

    Returns:
      A ``numpy.ndarray``.

    Raises:
      ImportError: numpy is missing.

    Example:
      from qserve.http_adapters import NdArray, json_to_ndarray

      print(json_to_ndarray(NdArray(array=[1.0, 2.0], shape=[2, 1])).shape)  # (2, 1)
    """
    return payload.to_numpy()


@require_packages(["numpy"])
def json_to_multi_ndarray(payload: dict[str, NdArray]) -> dict[str, Any]:
    """Return numpy arrays by name from a JSON body ``{"a": {"array": [1]}, ...}``.

    Parameters:
      payload: The body: an array for each name, as ``json_to_ndarray`` takes it.

    Returns:
      A dict of name to ``numpy.ndarray``.

    Raises:
      ImportError: numpy is missing.

    Example:
      from qserve.http_adapters import NdArray, json_to_multi_ndarray

      print(json_to_multi_ndarray({"a": NdArray(array=[1.0, 2.0])})["a"].shape)  # (2,)
    """
    return {name: array.to_numpy() for name, array in payload.items()}


@require_packages(["PIL", "numpy"])
def image_to_ndarray(img: Annotated[bytes, importlib.import_module("fastapi").File()]) -> Any:
    """Return a numpy array from an image of any format that Pillow reads; in a form, the field ``img``.

    Parameters:
      img: The bytes of the image.

    Returns:
      A ``numpy.ndarray`` of bytes: height, width, and colours if it has several.

    Raises:
      ImportError: Pillow or numpy is missing.

    Example:
      import io

      from PIL import Image
      from qserve.http_adapters import image_to_ndarray

      file = io.BytesIO()
      Image.new("RGB", (32, 24)).save(file, "PNG")
      print(image_to_ndarray(file.getvalue()).shape)  # (24, 32, 3)
    """
    # FastAPI evaluates the annotation, when it meets this function as a dependency; until then it is only text
    with importlib.import_module("PIL.Image").open(io.BytesIO(img)) as image:
        return importlib.import_module("numpy").array(image)


@require_packages(["pandas"])
async def pandas_read_json(raw_request: Request) -> Any:
    """Return a DataFrame from a JSON body; the query parameters are those of ``pandas.read_json``.

    Parameters:
      raw_request: A Starlette request.

    Returns:
      A ``pandas.DataFrame``.

    Raises:
      ImportError: pandas is missing.

    Example:
      from qserve.http_adapters import pandas_read_json

      app = serve.DAGDriver.bind(Greeter.bind(), http_adapter=pandas_read_json)
      # curl 'http://127.0.0.1:8000/?orient=split' -d '{"columns": ["a"], "data": [[1]]}'
    """
    body = await raw_request.body()
    # newer versions of pandas accept text only as a file
    text = body if isinstance(body, str) else body.decode()
    read_json = importlib.import_module("pandas").read_json
    try:
        return read_json(io.StringIO(text), **raw_request.query_params)
    except ValueError as error:
        why = error if text.strip() else EMPTY_BODY
        raise unreadable(f"the request body is not valid JSON: {why}", "invalid_json") from error
