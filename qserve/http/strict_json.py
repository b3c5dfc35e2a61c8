"""Parse JSON request bodies, more strictly than ``json.loads``: what is accepted can be stored and sent again as JSON.

Refused are NaN, numbers that become infinite, lone surrogates, duplicate keys, nesting beyond ``DEPTH_LIMIT``, more
values than ``ITEM_LIMIT``, and any encoding but UTF-8. The Content-Type is ignored, as in Ray Serve, because
``requests.post(url, data=json.dumps(x))`` sends none, and ``curl -d`` and ``wget --post-data`` send that of a form.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from qserve.http.message import EMPTY_BODY, BadRequest
from qserve.wire.codec import is_deeper

DEPTH_LIMIT = 64
ITEM_LIMIT = 1_000_000

# Each of the stricter rules costs a Python call per number or object, or a walk over the value. A search of the bytes
# tells which of the rules a body can break at all.
_LARGE_EXPONENT = re.compile(rb"[eE]\+?[0-9]{3}")
_LONG_NUMBER = b"0" * 200
_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")
_NO_MARKS = bytes(set(range(256)) - set(b',"'))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(body: bytes) -> Any:
    """Return the value of a JSON body.

    Raises:
      BadRequest: Status 400 and the code ``empty_body``, ``invalid_json``, ``invalid_unicode``,
        ``number_out_of_range``, ``duplicate_key``, ``too_deep`` or ``too_many_items``.
    """
    if body.count(b",") >= ITEM_LIMIT:
        _check_count(body)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"the request body is not valid UTF-8: invalid byte at position {error.start}", "invalid_unicode"
        ) from None
    decoder = _simple
    if b"{" in body:
        decoder = _pairs
    if _LARGE_EXPONENT.search(body) or _LONG_NUMBER in body.translate(_ANY_DIGIT):
        decoder = _careful
    value = _decode(decoder, text)
    if body.count(b"[") + body.count(b"{") > DEPTH_LIMIT and is_deeper(value, DEPTH_LIMIT):
        raise _too_deep()
    if _SURROGATE.search(body) is not None:
        _check_unicode(value)
    return value


def _check_count(body: bytes) -> None:
    """Count values before parsing: 10 MiB of empty lists would take twenty times as much memory as values."""
    # there is one value more than commas; commas inside strings, after an odd number of quotes, do not count
    marks = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_MARKS).replace(b'""', b"")
    if sum(part.count(b",") for part in marks.split(b'"')[::2]) >= ITEM_LIMIT:
        raise BadRequest(f"the request body contains more than {ITEM_LIMIT} values", "too_many_items")


def _decode(decoder: json.JSONDecoder, text: str) -> Any:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise BadRequest(f"the request body is not valid JSON: {EMPTY_BODY}", "empty_body") from None
        where = f"line {error.lineno}, column {error.colno}"
        raise BadRequest(f"the request body is not valid JSON: {error.msg} at {where}", "invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # int() refuses very long numbers
        raise _out_of_range() from None


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequest(f"the request body is not valid JSON: {name} is not a JSON value", "invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise BadRequest(f"the key {key[:100]!r} occurs twice in one object of the request body", "duplicate_key")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _out_of_range()
    return value


def _out_of_range() -> BadRequest:
    return BadRequest("the request body contains a number that is out of range", "number_out_of_range")


def _too_deep() -> BadRequest:
    return BadRequest(f"the request body is nested deeper than {DEPTH_LIMIT} levels", "too_deep")


def _check_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("the request body contains half of a surrogate pair", "invalid_unicode") from None


_simple = json.JSONDecoder(parse_constant=_refuse_constant)
_pairs = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
_careful = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique, parse_float=_finite)
