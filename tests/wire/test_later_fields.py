"""Two versions of qserve read what each other writes: a field that one of them does not know is no reason to refuse."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import msgpack
import pytest

import qserve.wire
from qserve.base.carried import Carried
from qserve.base.keyring import Keyring
from qserve.calls.handles import DeploymentHandle
from qserve.http import render
from qserve.http.message import HttpMessage, pack_message, unpack_message
from qserve.wire import application, fleet
from qserve.wire.application import (
    ApplicationRecord,
    DeploymentRecord,
    DriverRecord,
    NewerRecord,
    Resources,
    Scaling,
    TaskQueue,
)
from qserve.wire.codec import Codec
from qserve.wire.codes import packers, unpackers
from qserve.wire.dead_letter import DeadLetter
from qserve.wire.envelope import Answer, Header
from qserve.wire.events import Event
from qserve.wire.failure import Failure
from qserve.wire.modules import pack_modules, unpack_modules
from qserve.wire.outcome import CallField, Field
from qserve.wire.sealing import Seal, seal_header
from qserve.wire.status import ReplicaStatus
from qserve.wire.totals import Description, Distribution, Exemplar, Family, Kind, Published
from qserve.wire.webhook import Target
from qserve.wire.websocket import Kind as SessionKind
from qserve.wire.websocket import Part, acceptance

ID = "0123456789abcdef" * 2
KEYS = Keyring(b"secret")
LATER = {"later": {"a": [1, "b"]}}
MODEL = DeploymentRecord(
    "Model", scaling=Scaling(2, 3), resources=Resources(gpus=0.5), tasks=TaskQueue("orders", {"pay": "pay"})
)
RECORD = ApplicationRecord(
    "app", "v1", "Model", deployments={"Model": MODEL}, driver=DriverRecord("json_request", ("/a",), {"/a": "Model"})
)
HEADER = Header(ID, "app", "graph", 1_700_000_000_000, Answer.JSON, "trace", "/route", "model", True)
CARRYING = HEADER._replace(carried=Carried(tenant="acme", headers={"accept-language": "de"}))
REPORT = ReplicaStatus("replica", "Model", "v1", "RUNNING")
EVENT = Event("progress", 1.5, "Model", "0", 1, 0.5, "half")
FAILURE = Failure("builtins", "ValueError", "no", members=(Failure("builtins", "KeyError", "key"),))
_ADDRESS = ("127.0.0.1", 1)
MESSAGE = HttpMessage("GET", "http", "/", "", b"", ((b"host", b"x"),), _ADDRESS, None, b"body", {"id": 1}, b"/%41")
COUNTED = Published(
    1.0,
    False,
    {
        "a": Family(Description("a", Kind.COUNTER, "what", ("x",)), {("y",): 2.0}),
        "b": Family(
            Description("b", Kind.HISTOGRAM, "", (), (1.0,)),
            {(): Distribution((1, 0), 0.5, {0: Exemplar(ID, 0.5, 1.0)})},
        ),
    },
)
VALUES: list[Any] = [
    fleet.Lead("worker"),
    fleet.HostRecord("worker", "host"),
    fleet.Assignment((fleet.Slot("app", "v1", "Model"),)),
    fleet.Scaled(2),
    fleet.Wish(2),
    fleet.Drain("host"),
    fleet.LogLine(1.0, "error", "host", "Model", "", "text"),
    fleet.Rollout("v1"),
]


@dataclass(frozen=True)
class Case:
    """A record as a later version writes it, how it is read, and what this version takes it for."""

    kind: Any
    later: Any
    read: Callable[[Any], Any]
    expected: Any


def with_parts(data: bytes, *more: Any) -> bytes:
    return msgpack.packb([*msgpack.unpackb(data), *more])  # type: ignore[no-any-return]


def in_json(record: Any) -> Case:
    return Case(
        type(record), json.dumps({**json.loads(record.encode()), **LATER}).encode(), type(record).decode, record
    )


def later_record(record: ApplicationRecord) -> bytes:
    parts = msgpack.unpackb(record.encode())
    model = parts["deployments"]["Model"]
    for one in (parts, parts["driver"], model, model["scaling"], model["resources"], model["tasks"]):
        one.update(LATER)
    return msgpack.packb(parts)  # type: ignore[no-any-return]


def later_failure() -> bytes:
    *parts, members = msgpack.unpackb(FAILURE.encode())
    return msgpack.packb([*parts, [[*member, LATER] for member in members], LATER])  # type: ignore[no-any-return]


def later_totals() -> bytes:
    until_ms, has_page, message = msgpack.unpackb(COUNTED.encode())
    sender, (counter, histogram) = msgpack.unpackb(message)
    (value,), (distribution,) = counter[-1], histogram[-1]
    distribution[-1] = [[*exemplar, LATER] for exemplar in distribution[-1]]
    families = [
        [*counter[:-1], [[*value, LATER]], LATER],
        [*histogram[:-1], [[*distribution, LATER]], LATER],
        ["c", "a later kind", LATER],
    ]
    return msgpack.packb([until_ms, has_page, msgpack.packb([sender, families, LATER]), LATER])  # type: ignore[no-any-return]


def later_letter() -> dict[bytes, bytes]:
    header = seal_header(Seal(Keyring()), HEADER.encode())
    return {
        b"!1": msgpack.packb(["queue", [CallField.HEADER, header, CallField.STEP, b"0"], "later"]),
        b"!later": b"1",
        Field.WHY: b"deaths",
        Field.AT: b"1000",
        Field.HISTORY: msgpack.packb([[1000, "replica", "died", "later"]]),
    }


def read_letter(parts: dict[bytes, bytes]) -> Any:
    letter = DeadLetter.read(ID, parts, Seal(Keyring()))
    assert letter is not None
    (event,) = letter.history
    return letter.header, letter.call.step, event.at, event.replica, event.what


def later_modules() -> bytes:
    body = KEYS.verify(pack_modules({"shop": ("shop.py", False, b"")}, KEYS))
    assert body is not None
    found = {name: [*module, 1] for name, module in msgpack.unpackb(zlib.decompress(body)).items()}
    return KEYS.sign(zlib.compress(msgpack.packb(found)))


HANDLE = DeploymentHandle("Model", "app").options(method_name="predict", trace=True)


def read_handle(packed: list[Any]) -> Any:
    code, _ = packers[DeploymentHandle]
    return unpackers[code](packed)


def later_handle() -> list[Any]:
    _, pack = packers[DeploymentHandle]
    return [*pack(HANDLE), LATER]


CASES = [
    *map(in_json, [*VALUES, REPORT]),
    Case(Header, ID.encode() + with_parts(HEADER.encode()[32:], None, LATER, None), Header.decode, HEADER),
    Case(Header, ID.encode() + with_parts(CARRYING.encode()[32:], LATER), Header.decode, CARRYING),
    Case(ApplicationRecord, later_record(RECORD), ApplicationRecord.decode, RECORD),
    Case(Failure, later_failure(), Failure.decode, FAILURE),
    Case(Event, with_parts(EVENT.encode(), LATER), Event.decode, EVENT),
    Case(Published, later_totals(), Published.decode, COUNTED),
    Case(DeadLetter, later_letter(), read_letter, (HEADER, "0", 1.0, "replica", "died")),
    Case("modules", later_modules(), lambda data: unpack_modules(data, KEYS), {"shop": ("shop.py", False, b"")}),
    Case(HttpMessage, [*pack_message(MESSAGE), LATER], unpack_message, MESSAGE),
    Case(
        render.Rendered,
        with_parts(render.render("text", Answer.PLAIN), LATER),
        lambda data: render.parse(data).body,
        b"text",
    ),
    Case(DeploymentHandle, later_handle(), read_handle, HANDLE),
    Case(Target, msgpack.packb(["https://a.example", ID, LATER]), Target.decode, Target("https://a.example", ID)),
    Case(
        "acceptance",
        Part(SessionKind.ACCEPT, msgpack.packb(["chat", [["a", "b"]], LATER])),
        acceptance,
        ("chat", [("a", "b")]),
    ),
    Case("head", msgpack.packb([200, [["a", "b"]], LATER]), render.parse_head, (200, [["a", "b"]])),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: getattr(case.kind, "__name__", case.kind))
def test_a_field_of_a_later_version_is_left_out(case: Case) -> None:
    assert case.read(case.later) == case.expected


def test_every_kind_of_record_is_among_these() -> None:
    kinds = set()
    for found in pkgutil.iter_modules(qserve.wire.__path__, "qserve.wire."):
        for _, kind in inspect.getmembers(importlib.import_module(found.name), inspect.isclass):
            is_codec = kind is Codec or kind.__name__.startswith("_")  # which decodes values of users
            if (
                kind.__module__ == found.name
                and hasattr(kind, "decode")
                and not issubclass(kind, bytes)
                and not is_codec
            ):
                kinds.add(kind)
    assert kinds <= {case.kind for case in CASES}


@pytest.mark.parametrize("record", [*VALUES, REPORT], ids=lambda record: type(record).__name__)
def test_a_field_that_an_earlier_version_did_not_write_has_its_default(record: Any) -> None:
    needed = {one.name for one in fields(record) if one.default is one.default_factory}
    earlier = {name: value for name, value in json.loads(record.encode()).items() if name in needed}

    assert type(record).decode(json.dumps(earlier).encode()) == type(record)(**{n: getattr(record, n) for n in needed})


@pytest.mark.parametrize("count", range(4, 10))
def test_a_header_of_an_earlier_version_has_defaults_for_what_is_missing(count: int) -> None:
    earlier = msgpack.packb(msgpack.unpackb(HEADER.encode()[32:])[:count])

    assert Header.decode(ID.encode() + earlier) == Header(*HEADER[: count + 1])


def test_an_option_of_an_earlier_or_later_version_changes_no_digest_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = MODEL.config
    monkeypatch.setattr(DeploymentRecord, "hurry", 0, raising=False)
    monkeypatch.setattr(application, "_TAKEN", {"hurry": 0, **application._TAKEN})

    assert replace(MODEL).config == before
    monkeypatch.setattr(DeploymentRecord, "hurry", 1)
    assert replace(MODEL).config != before


def test_a_record_that_says_what_must_not_be_left_out_is_refused_in_plain_words() -> None:
    newer = replace(RECORD, format=application.FORMAT + 1)

    with pytest.raises(NewerRecord, match="application 'app' was deployed by a newer qserve.* upgrade this process"):
        ApplicationRecord.decode(later_record(newer))
