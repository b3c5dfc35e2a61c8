"""What reads bytes that others wrote, each with the errors that it may raise: anything else is a mistake of ours."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import io
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy
from qserve_gateway.jobs import Job
from qserve_gateway.request import environ as incoming
from qserve_gateway.request.access import TOKEN, AccessPolicy, check_origin
from qserve_gateway.request.handshake import opened
from qserve_gateway.response.errors import failure_reply
from qserve_gateway.webhooks import body_of

from qserve.base.keyring import TAG_BYTES, Keyring
from qserve.base.settings import Settings
from qserve.calls import responses  # noqa: F401 - it registers refs with the codec
from qserve.calls.ref import Ref
from qserve.exceptions import PayloadError
from qserve.graph.plan import InputKey, Plan, Slot, Step
from qserve.http import render, strict_json
from qserve.http import request as _request  # noqa: F401 - requests travel once it is imported
from qserve.http.message import BadRequest, HttpMessage
from qserve.overview.letters import summary_of
from qserve.overview.traces import tries_of
from qserve.wire import claim as claims
from qserve.wire import fleet, replies
from qserve.wire.application import (
    ApplicationRecord,
    DeploymentRecord,
    DriverRecord,
    Resources,
    Scaling,
    dump_plan,
    load_plan,
)
from qserve.wire.claim import BROKER, FOLDER, MEMORY, Claim, apart, wrap
from qserve.wire.codec import Codec
from qserve.wire.dead_letter import DeadLetter
from qserve.wire.description import pack_description, unpack_description
from qserve.wire.envelope import Answer, Header
from qserve.wire.events import Event
from qserve.wire.failure import Failure
from qserve.wire.modules import pack_modules, unpack_modules
from qserve.wire.outcome import Outcome
from qserve.wire.sealing import Seal, event_context, open_end, open_header, seal_end, seal_header
from qserve.wire.status import ReplicaStatus, decode_stats
from qserve.wire.times import server_timing, split_times, step_time, with_times
from qserve.wire.totals import Description, Distribution, Exemplar, Family, Kind, Published
from qserve.wire.traces import TraceRecord
from qserve.wire.webhook import DueWebhook
from qserve.wire.webhook import Target as Receiver
from qserve.wire.websocket import Farewell, Part, acceptance, acceptance_part, farewell, part_in, text_of
from qserve.wire.websocket import Kind as SessionKind

CORPUS = Path(__file__).with_name("corpus")
KEYS = Keyring(b"the key of these targets")
REQUEST_ID = "0123456789abcdef" * 2
RECEIVER = Receiver("https://example.com/done", "trace")


@dataclass(frozen=True)
class Target:
    """One reader.

    Parameters:
      read: Takes any bytes, as they might lie in the broker or come from a client.
      errors: What it may raise for those that it refuses.
      seeds: Bytes that it accepts.
    """

    name: str
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]

    def run(self, data: bytes) -> None:
        """Read ``data``; an error that is not declared comes out."""
        try:
            self.read(data)
        except self.errors as error:
            str(error)

    def corpus(self) -> list[bytes]:
        """The seeds, and what was once refused with the wrong error."""
        return self.seeds() + [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))]


def _read_header(data: bytes) -> object:
    header = Header.decode(data)
    return f"{header!r} {header.expired()}"


def _headers() -> list[bytes]:
    plain = Header(REQUEST_ID, "app", None, 1_700_000_000_000)
    full = Header(REQUEST_ID, "app", "graph", 1_700_000_000_000, Answer.JSON, "trace", "/route", "model", True)
    return [plain.encode(), full.encode()]


def _read_sealed(data: bytes) -> object:
    return open_header(Seal(KEYS), data)


def _read_webhook(data: bytes) -> object:
    found = DueWebhook.read([REQUEST_ID.encode(), *data.split(b"|", 4)], Seal(Keyring()))
    return f"{found!r} {found.status} {body_of(found, True)!r}"


def _webhooks() -> list[bytes]:
    plain = Seal(Keyring())
    target, done = plain.seal(b"", RECEIVER.encode()), plain.seal(b"", render.render("done", Answer.PLAIN))
    ends = [b"|", b"d|" + done, b"d|", b"x|" + plain.seal(b"", b""), b"f|\0not_kept"]
    return [b"|".join((target, end, b"1700000000000", b"3")) for end in ends]


def _read_unsigned(data: bytes) -> object:
    return open_header(Seal(Keyring()), data)


@dataclass
class Point:
    """A record of a class that every reader has imported."""

    x: int
    y: Any = None


def _message() -> HttpMessage:
    return HttpMessage("POST", "http", "/a/b", "/a", b"x=1", ((b"host", b"here"),), ("::1", 1), None, b"{}", {"id": 1})


def _values() -> list[bytes]:
    plain: list[Any] = [
        None,
        [1, -1.5, "text", b"bytes", {"a": [True, None]}, {1: 2}],
        (1, {2, 3}, frozenset((4,))),
        [datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), datetime.date(2020, 1, 2), datetime.time(1, 2)],
        [datetime.timedelta(1, 2, 3), uuid.UUID(int=5), decimal.Decimal("1.5"), 1 + 2j, 2**70],
        [numpy.arange(6, dtype="<i4").reshape(2, 3), numpy.float32(1.5), numpy.zeros(1, dtype=[("a", "<i2")])],
        [Slot(1, True), Point(1, (2,)), _message(), Ref.resolved(3)],
    ]
    return [Codec().encode(value) for value in plain]


def _signed() -> list[bytes]:
    return [Codec(KEYS).encode([Point, {"a": Point(1)}])]


def _read_value(data: bytes) -> object:
    return Codec().decode(data)


def _read_failure(data: bytes) -> object:
    error = Failure.decode(data).to_exception()
    return f"{error} {error!r}"


def _failures() -> list[bytes]:
    failed = []
    for error in (ValueError("why", 3), KeyError("missing"), PayloadError("ours"), OSError(2, "no", "file")):
        failed += [Failure.of(error).encode(), Failure.of(error, "Model").encode()]
    return failed


def _plan() -> Plan:
    steps = (Step("A", "__call__", (Slot(0),), {}, 1), Step("B", "run", (Slot(0), Slot(1, True)), {"k": 1}, 2))
    return Plan(steps, {InputKey(): ((0, 0),), InputKey("item", "x"): ((1, 0),), 0: ((1, 1),)}, 1)


def _read_plan(data: bytes) -> object:
    try:
        parts = msgpack.unpackb(data)
    except Exception:  # a record's plans were unpacked with it
        return None
    return load_plan(parts)


def _plans() -> list[bytes]:
    return [msgpack.packb(dump_plan(_plan(), Codec()))]


def _read_record(data: bytes) -> object:
    return ApplicationRecord.decode(data).plans


def _records() -> list[bytes]:
    plain = ApplicationRecord("app", "v1", "A")
    full = ApplicationRecord(
        "app",
        "v1",
        "A",
        "/route",
        "module:node",
        deployments={"A": DeploymentRecord("A", retry_on=["ValueError"], scaling=Scaling(), resources=Resources(2.0))},
        graphs={"": dump_plan(_plan(), Codec())},
        driver=DriverRecord("json_request", ("a", "b"), {"a": "A"}),
    )
    return [plain.encode(), full.encode()]


def _bodies() -> list[bytes]:
    return [b'{"a": [1, -2.5e3, true, null, "\\u00e9\\ud83d\\ude00"]}', b'"text"', b"[" * 20 + b"]" * 20, b"1e300"]


def _messages() -> list[bytes]:
    return [REQUEST_ID.encode() + state + b"payload" for state in (b"d", b"f", b"c", b"x", b"i")]


def _read_answer(data: bytes) -> object:
    (status, headers, body), claim = render.parse_apart(data)
    return f"{status:d}", [name.lower() + value for name, value in headers], bytes(body), claim


def _answers() -> list[bytes]:
    whole = [render.render("text", Answer.PLAIN), render.render({"a": 1}, Answer.JSON)]
    return [*whole, wrap(Claim(BROKER, "", "0" * 32, 5, bytes(32)), msgpack.packb([200, [["a", "b"]], None]))]


def _read_stream_head(data: bytes) -> object:
    status, headers = render.parse_head(data)
    return f"{status:d}", [name.lower() + value for name, value in headers]


SIGNED = Seal(KEYS)
OURS = Failure.of(ValueError("ours")).encode()


def _read_stored_end(data: bytes) -> object:
    """The state and the result of a request, as somebody without the key may have stored them."""
    state, _, payload = data.partition(b"|")
    outcome = open_end(SIGNED, REQUEST_ID, replies.stored(state, payload))
    reply = failure_reply(outcome, "client-id", True)
    is_ours = payload in (_sealed_answer(), seal_end(SIGNED, REQUEST_ID, "f", OURS))
    assert reply.status in (499, 500, 504) or is_ours, "what is not sealed was believed"
    return reply


def _sealed_answer() -> bytes:
    return seal_end(SIGNED, REQUEST_ID, "d", _answers()[0])


def _stored_ends() -> list[bytes]:
    answer = Failure("x", "HTTPException", "", attributes={"status_code": 200, "detail": "mine"}, is_answer=True)
    forged = [b"z", b"i", b"dd", b"", b"\xff", b"o", b"f", b"d", b"c", b"x", *(bytes((code,)) for code in range(256))]
    return [
        b"d|" + _sealed_answer(),
        b"f|" + seal_end(SIGNED, REQUEST_ID, "f", OURS),
        *(state + b"|" + answer.encode() for state in forged),
        *(state + b"|" + _answers()[0] for state in forged),
    ]


def _read_found(data: bytes) -> object:
    parts = data.split(b"|", 3)
    found = replies.found([part or None for part in parts])
    return open_end(SIGNED, REQUEST_ID, Outcome(found.state, found.payload))


def _read_letter(data: bytes) -> object:
    """A dead letter of which one field is anything."""
    name, _, value = data.partition(b"|")
    parts = dict(_letter())
    parts[name] = value
    letter = DeadLetter.read(REQUEST_ID, parts, SIGNED)
    return f"{letter!r} {summary_of(letter) if letter else ''}"


def _letter() -> dict[bytes, bytes]:
    call = ["{qserve}:q:app:v:A", ["h", seal_header(SIGNED, _headers()[0]), "s", "0", "0", b"value"]]
    return {b"!1": msgpack.packb(call), b"!n": b"1", b"!why": b"deaths", b"!at": b"1700000000000", b"!failure": b"no",
            b"!y": msgpack.packb([[1_700_000_000_000, "replica", "died"]])}  # fmt: skip


def _reports() -> list[bytes]:
    return [ReplicaStatus("r", "A", "v", "RUNNING", 7, "host", "", "c", stats='{"queued": 2.0}').encode(),
            ReplicaStatus("r", "A", "v", "FAILED", message="Traceback [{(\"\\").encode()]  # fmt: skip


def _read_report(data: bytes) -> object:
    report = ReplicaStatus.decode(data)
    decode_stats(report.stats)
    return f"{report!r}".encode(), hash(report)


_EVENTS = (Event("progress", 1.5, "Model", "0", 1, 0.5, "half"), Event("done", 2.0, "Model", "0", 1))


def _trace() -> dict[bytes, bytes]:
    event = SIGNED.seal(event_context(REQUEST_ID), Event("started", 1.5, "Model", "0", 1, queued_ms=2.0).encode())
    failed = seal_end(SIGNED, REQUEST_ID, "f", Failure("builtins", "ValueError", "no").encode())
    return {b"st": b"f", b"tr": b"1700000000000", b"h": seal_header(SIGNED, _headers()[0]), b"res": failed,
            b"q": b"{qserve}:queue:app:v1:Model",
            b"ev": msgpack.packb([[event, b"1700000000001"], [event, 1_700_000_000_002], [event, b""]])}  # fmt: skip


def _read_trace(data: bytes) -> object:
    """One field of a trace is replaced; what can be read makes a waterfall."""
    name, _, value = data.partition(b"|")
    record = TraceRecord.read((b"1700000000003-0", {**_trace(), name: value}), SIGNED)
    shown = tries_of(record.events, record.began_ms / 1000, record.ended_ms / 1000, record.state)
    return json.dumps([vars(one) for one in shown], allow_nan=False)


_FLEET = (
    fleet.Lead("worker", 7),
    fleet.HostRecord(
        "worker", "host", 8, True, ("0", "1"), 1 << 30, {"tpu": 1.0}, {"zone": "a"}, ("app:v",), {"app:*": 2}
    ),
    fleet.Assignment((fleet.Slot("app", "v", "A", 2, ("0",), True),), 3),
    fleet.Scaled(2, 1, "40 wait", "AUTOSCALING", 1.7e12, policy_state="[1]"),
    fleet.Wish(3, 1, True, "me", 1.7e12),
    fleet.Drain("host", "me"),
    fleet.LogLine(1.7e12, "ERROR", "A-host-1", "A", "id", "it failed\n    Traceback"),
    fleet.Rollout("v", "u", "me", new={"A": 1}, keep={"A": 2}),
)


def _read_fleet(data: bytes) -> object:
    """The bytes as every value that workers leave for one another; one that is accepted stays what it is."""
    for kind in map(type, _FLEET):
        with contextlib.suppress(PayloadError):
            value = kind.decode(data)
            assert kind.decode(value.encode()) == value
    return None


def _read_websocket(data: bytes) -> object:
    """A part of a WebSocket's message, and what it says."""
    part = part_in(data, 7)
    if part.kind is SessionKind.ACCEPT:
        return [f"{name.lower()}: {value}" for name, value in acceptance(part)[1]]
    return farewell(part.data) if part.kind is SessionKind.CLOSE else text_of(part.data)


def _parts() -> list[bytes]:
    text = Part(SessionKind.TEXT, b"text", False)
    return [part.encode(7) for part in (acceptance_part("chat", [["x-a", "b"]]), Farewell(1000, "done").part(), text)]


def _control() -> list[bytes]:
    properties = {"delivery_tag": "t", "delivery_info": {"exchange": "e", "routing_key": ""}}
    return [msgpack.packb({"body": b"{}", "properties": properties, "headers": {}, "content-type": "application/json"})]


def _read_name(data: bytes) -> object:
    """One value in every place where the broker's replies have one, and lists of it."""
    read_any: list[Callable[[Any], object]] = [
        replies.text, replies.number, replies.position, replies.request_id, replies.epoch, replies.address,
        replies.time_s, replies.told, replies.message, replies.control_message, replies.fields,
        lambda raw: list(replies.each([raw, None, 1, [raw]], replies.text)),
    ]  # fmt: skip
    read_bytes: list[Callable[[bytes], object]] = [
        replies.claimed_id,
        replies.shown,
        lambda raw: replies.last_position([(raw, {})]),
        lambda raw: replies.deliveries([[raw, [[raw, [raw, raw]]]]]),
        lambda raw: replies.personal_streams({b"s:" + raw: raw, raw: raw}, "stream"),
        lambda raw: replies.consumer_names([{"name": raw}, {}, raw]),
        lambda raw: replies.step_number(raw.decode("latin-1")),
        lambda raw: replies.version(raw),
        lambda raw: replies.peeked([[raw, raw, raw, raw, raw, raw, raw], [raw], raw]),
        lambda raw: replies.peeked([[raw, b"queue", b"0", b"1", b"running", raw, b"replica"]]),
        lambda raw: (
            replies.run_id({"run_id": raw}),
            replies.run_id(raw),
            replies.field_values([raw, raw]),
            replies.connections(raw),
            replies.connection_ids(raw),
        ),
    ]
    calls = [partial(read, reply) for read in read_any for reply in (data, [data], [data, data], [data] * 3, None)]
    for call in [*calls, *(partial(read, data) for read in read_bytes)]:
        with contextlib.suppress(PayloadError):
            call()
    return None


def _read_end(data: bytes) -> object:
    """What the gateway answers for the end of a request: its state, and what lay in the broker."""
    reply = failure_reply(Outcome(data[:1].decode("latin-1"), data[1:]), "client-id", True)
    body = b"".join(reply({"REQUEST_METHOD": "GET"}, lambda status, headers: None))
    return f"{reply.status:d}", body


def _ends() -> list[bytes]:
    return [b"d" + one for one in _answers()] + [b"f" + one for one in _failures()] + [b"c", b"x"]


_HEADERS = (
    "HTTP_HOST",
    "HTTP_ORIGIN",
    "HTTP_SEC_FETCH_SITE",
    "HTTP_X_REQUEST_TIMEOUT_SECONDS",
    "HTTP_SERVE_MULTIPLEXED_MODEL_ID",
    "HTTP_X_REQUEST_ID",
    "HTTP_PREFER",
    "HTTP_IDEMPOTENCY_KEY",
    "HTTP_AUTHORIZATION",
    "HTTP_CONNECTION",
    "HTTP_UPGRADE",
    "HTTP_SEC_WEBSOCKET_VERSION",
    "HTTP_SEC_WEBSOCKET_KEY",
    "HTTP_SEC_WEBSOCKET_PROTOCOL",
)


def _read_head(data: bytes) -> object:
    """What the gateway reads of a request line (target, path, query) and its headers, separated by line feeds."""
    target, path, query, *rest = [*data.decode("latin-1").split("\n"), "", ""]
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "RAW_URI": target,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "here",
        "wsgi.url_scheme": "http",
        **{name: value for name, value in zip(_HEADERS, rest, strict=False) if value},
    }
    given = incoming.request_id_of(environ)
    assert given.isascii() and given.isprintable() and len(given) <= 128
    decoded = incoming.path_of(environ)
    # each of these is looked at whatever the others say: for some requests it is the only one
    looks: list[Callable[[], object]] = [
        lambda: Codec().encode(incoming.message_of(environ, decoded, "", b"", {})),
        lambda: incoming.url_of(environ, decoded).encode(),
        lambda: incoming.timeout_of(environ, 1.0),
        lambda: incoming.model_id_of(environ),
        lambda: Job.of(environ, b"", "app", Settings()),
        lambda: check_origin(environ),
        lambda: opened({**environ, "gunicorn.socket": object(), "wsgi.input": io.BytesIO()}),
        lambda: check_origin(environ, frozenset(("here",))),
        lambda: AccessPolicy().check(dict(environ)),
        lambda: AccessPolicy.from_env({"QSERVE_ALLOWED_HOSTS": "here", TOKEN: "secret"}).check(dict(environ)),
    ]
    for look in looks:
        try:
            look()
        except BadRequest as error:
            str(error)
    return looks


def _heads() -> list[bytes]:
    return [
        b"/a?a=1\n/a\na=1&b=%20\nlocalhost:8000\nhttp://there\ncross-site\n2.5\nmodel-1\nid-1\n"
        b'respond-async, wait=5;x="y"\n"key-1"\nBearer secret',
        b"/\n/\n\nhere\n\n\n\n\n\n\n\n\nUpgrade\nwebsocket\n13\nAAAA\nchat, other",
        b"http://here/\n/caf\xc3\xa9\n\n[::1]:80\nnull\n\n1e9\n\n\nwait=x\nkey",
    ]


def _modules() -> list[bytes]:
    modules = {"shop": ("/shop/__init__.py", True, b""), "shop.app": ("/shop/app.py", False, b"x = 1")}
    return [pack_modules(modules, KEYS)[TAG_BYTES:]]


_TIMES = {"0": step_time("Model", "__call__", 1.5, 2.5), "1": step_time("Model", "other", 0.0, 1.0)}


def _read_times(data: bytes) -> object:
    times, _ = split_times(data)
    return server_timing(times.values()).encode("latin-1")


def _claims() -> list[bytes]:
    in_memory = Claim(MEMORY, f"host/{REQUEST_ID}/qserve-1000-0123456789abcdef", REQUEST_ID, 8 << 20, b"n" * 16)
    in_broker, in_folder = (Claim(store, "", REQUEST_ID, 1, b"d" * 32) for store in (BROKER, FOLDER))
    return [wrap(claim, b"\x01") for claim in (in_memory, in_broker, in_folder._replace(place="0" * 16))]


class _Store:
    """A store in this process; a value that it does not have is the last one."""

    threshold, max_bytes = 8, 1 << 20

    def __init__(self) -> None:
        self.values: dict[str, bytearray] = {}

    def put(self, parts: Sequence[claims.Part], size: int, kind: claims.Kind) -> Claim:
        value = bytearray(size)
        for offset, part in parts:
            value[offset : offset + len(part)] = part
        name = f"{len(self.values):032x}"
        self.values[name] = value
        return Claim(BROKER, "", name, size, b"d" * 32)

    def get(self, claim: Claim) -> memoryview:
        return memoryview(self.values.get(claim.name, self.values[max(self.values)]))

    def is_heavy(self, size: int, kind: claims.Kind) -> bool:
        return False


_STORE = _Store()
_STORED = [
    Codec(KEYS, values=_STORE).encode(value)
    for value in (
        *(b"x" * 100, numpy.arange(20), [bytearray(50), (b"y" * 20,)], "text" * 9, [numpy.zeros(9), lambda: 1]),
        *(numpy.zeros((100, 100), order="F"), {"a": [b"z" * 9]}),
    )
]


def _metrics() -> list[bytes]:
    counter = Description("calls", Kind.COUNTER, "Calls.", ("application", "deployment"))
    latency = Description("latency_ms", Kind.HISTOGRAM, "Latency.", ("application",), bounds=(1.0, 10.0))
    spread = Distribution((1, 0, 2), 31.5, {2: Exemplar(REQUEST_ID, 15.0, 1.7e9)})
    snapshot = {"calls": Family(counter, {("a", "b"): 3.0}), "latency_ms": Family(latency, {("a",): spread})}
    return [Published(1.7e12, False, snapshot).encode()]


def _descriptions() -> list[bytes]:
    paths = {"/": {"post": {"responses": {"200": {"description": "The result."}}}}}
    return [pack_description({"description": "", "paths": paths, "components": {"schemas": {}}})]


TARGETS = (
    Target("header", _read_header, (PayloadError,), _headers),
    Target("sealed", _read_sealed, (PayloadError,), lambda: [seal_header(Seal(KEYS), one) for one in _headers()]),
    Target(
        "unsigned", _read_unsigned, (PayloadError,), lambda: [seal_header(Seal(Keyring()), one) for one in _headers()]
    ),
    Target("value", _read_value, (PayloadError,), _values),
    Target("signed_value", Codec(KEYS).decode, (PayloadError,), _signed),
    Target("failure", _read_failure, (PayloadError,), _failures),
    Target("plan", _read_plan, (PayloadError,), _plans),
    Target("record", _read_record, (PayloadError,), _records),
    Target("json", strict_json.loads, (BadRequest,), _bodies),
    Target("mailbox", replies.message, (PayloadError,), _messages),
    Target("answer", _read_answer, (PayloadError,), _answers),
    Target("end", _read_end, (PayloadError,), _ends),
    Target("head", _read_head, (BadRequest,), _heads),
    Target("stream_head", _read_stream_head, (PayloadError,), lambda: [msgpack.packb([200, [["a", "b"]]])]),
    Target("stored_end", _read_stored_end, (PayloadError,), _stored_ends),
    Target("found", _read_found, (PayloadError,), lambda: [b"d|result", b"o||header", b"|"]),
    Target("letter", _read_letter, (PayloadError,), lambda: [b"|".join(field) for field in _letter().items()]),
    Target("modules", lambda data: unpack_modules(KEYS.sign(data), KEYS), (PayloadError,), _modules),
    Target("report", _read_report, (PayloadError,), _reports),
    Target("fleet", _read_fleet, (), lambda: [one.encode() for one in _FLEET]),
    Target("event", Event.decode, (PayloadError,), lambda: [one.encode() for one in _EVENTS]),
    Target("trace", _read_trace, (PayloadError,), lambda: [b"|".join(field) for field in _trace().items()]),
    Target("webhook", _read_webhook, (PayloadError,), _webhooks),
    Target("websocket", _read_websocket, (PayloadError,), _parts),
    Target("metrics", Published.decode, (PayloadError,), _metrics),
    Target("description", unpack_description, (PayloadError,), _descriptions),
    Target("times", _read_times, (PayloadError,), lambda: [with_times(b"value", _TIMES)]),
    Target("stored_value", Codec(KEYS, values=_STORE).decode, (PayloadError,), lambda: _STORED),
    Target("claim", apart, (PayloadError,), _claims),
    Target("freed", lambda data: replies.freed(data.split(b"|")), (), lambda: [b"OK|" + b"1" * 32]),
    Target("ends", lambda data: replies.ends(data.split(b"|")), (PayloadError,), lambda: [b"dapp|3|capp|1"]),
    Target("control", replies.control_message, (PayloadError,), _control),
    Target("name", _read_name, (PayloadError,), lambda: [b"name", b"17", b"1-2", REQUEST_ID.encode()]),
)
