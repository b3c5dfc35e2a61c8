"""Every key in the broker: its name, its type and its time to live.

    key                             type    holds                                           time to live

    q:<app>:<version>:<deployment>  stream  calls, consumed by the group replicas           version + RETIRED_TTL_MS
    <a stream>@<replica>            stream  calls for a model that this replica holds       version + RETIRED_TTL_MS
    x:<app>:<version>:<deployment>  hash    which replica holds which model                 version + RETIRED_TTL_MS
    z:<app>:<version>:<deployment>  zset    calls that wait: for another try, a result      the longest of its requests
    u:<app>:<version>:<deployment>  string  the replica that leaves because it is ill       its grace and a start
    r:<request>                     hash    a request: state, joins, fingerprint, result    deadline + a day, result_ttl
    m:<process>                     list    replies for one process                         MAILBOX_TTL_MS from the last
    v:<request>                     stream  its events, EVENTS_KEPT, if somebody follows it that of the request
    traces                          stream  traces of requests that have ended, TRACES_KEPT TRACES_TTL_MS from the last
    d:<request>                     hash    a dead letter: its request, its calls           DEAD_LETTER_TTL_MS
    h:<request>                     hash    its webhook, and the end that this is to tell   that of r:, WEBHOOK_TTL_MS
    hooks                           zset    ids of webhooks by when they are to be sent     the longest of these
    y:<value>                       hash    a stored value: how many hold it, and its parts  the longest of its holders
                                            if the broker stores it
    ends                            hash    how many requests have ended that no replica    ENDS_TTL_MS from the last
                                            has counted, by state and application
    dead                            zset    ids of dead letters by their time               the same after the last
    left:<width>:<part>             string  bytes of large results left for a later reader  result_ttl and an eighth
    dead:dropped                    string  how many were too many and dropped              the same after the last
    dead:bytes                      hash    bytes of each large one, and of all of them     the same after the last
    epoch                           string  names the state of this broker                  for ever; gone with the data
    a:<app>                         hash    one application: records active, next, old:*    until it is deleted
    code:<app>:<version>            string  code that travels, signed                       3 versions + RETIRED_TTL_MS
    apps                            hash    application names                               for ever, one field an app
    changes                         stream  a line for each change of apps                  for ever, CHANGES_KEPT lines
    p:<app>                         hash    replica to its state, as sealed JSON            POOL_TTL_MS
    p:                              hash    application to its deployment that cannot start POOL_TTL_MS from the last
    b:<replica>                     string  a replica's heartbeat counter, sealed           4 leases and BEAT_TTL_MS
    b:<replica>:open                string  its connections to this run of the broker       the same
    g:<gateway process>             string  the version of apps that it serves              BEAT_TTL_MS
    lead                            string  which worker decides what runs where            BEAT_TTL_MS
    hosts                           hash    what each worker offers: places, devices, code  a minute after it is gone
    plan                            hash    what each worker is to run                      as its field in hosts
    s:<app>                         hash    a deployment to its count, and why it is that   until the app is deleted
    w:<app>                         hash    a deployment to what an operator asked for      until the app is deleted
    drains                          hash    hosts that are to run nothing                   until an operator undoes it
    o:<app>                         string  the deploy that is under way, or was the last   ROLLOUT_TTL_MS
    l:<app>                         stream  log lines of its replicas, LOG_LINES_KEPT   LOG_TTL_MS from the last
    t                               hash    a worker to what its replicas have counted      TOTALS_TTL_MS from the last
    celery:<queue>                  list    Celery's own remote control                     CONTROL_TTL_MS
    celery:fanout:<name>            stream  Celery's broadcasts                             CONTROL_TTL_MS

An open request is removed when it ends, long before its key expires.

All names carry the same hash tag, so that the keys of one commit are in one slot of a cluster.
"""

from __future__ import annotations

# the parts of names that the broker's functions know as well
QUEUE, MODELS, DELAYED, LEAVING = "q", "x", "z", "u"
REQUEST, MAILBOX, DEAD_LETTER, DEAD_LETTERS, DROPPED, LETTER_BYTES = "r", "m", "d", "dead", "dropped", "bytes"
EVENTS, TRACES, ENDS = "v", "traces", "ends"
WEBHOOK, WEBHOOKS = "h", "hooks"
LEFT = "left"
VALUE = "y"
PERSONAL = "@"
"""Stands between a deployment's stream and the name of a replica that has its own stream."""
COUNTS = "!"
"""Ends the name of a mailbox whose process counts bytes before it reads them: long results are only announced there."""

GROUP = "replicas"
MAILBOX_TTL_MS = 120_000
EVENTS_KEPT = 128
EVENTS_TTL_MS = 60_000
"""The events of a request whose result is not kept are there for so long after its end."""
TRACES_KEPT, TRACE_BYTES = 400, 20 * 1024
"""The traces that are kept, and the most bytes of each: 8 MB in all."""
TRACES_TTL_MS = 15 * 60_000
DEAD_LETTER_TTL_MS = 7 * 24 * 3_600_000
DEAD_LETTERS_KEPT = 10_000
BEAT_TTL_MS = 15_000
POOL_TTL_MS = 24 * 3_600_000
CONTROL_TTL_MS = 60_000
CLOCK_MARGIN_MS = 24 * 3_600_000
"""The broker counts by its own clock: keys that hold accepted work live this much longer than they are needed, so that
a clock that is set ahead by less removes none of it."""
WEBHOOK_TTL_MS = CLOCK_MARGIN_MS + 4 * 24 * 3_600_000
"""Longer than it takes until the last try."""
RETIRED_TTL_MS = CLOCK_MARGIN_MS + 3_600_000
CHANGES_KEPT = 64
ROLLOUT_TTL_MS = 24 * 3_600_000
TOTALS_TTL_MS = 3_600_000
ENDS_TTL_MS = 3_600_000
LOG_TTL_MS = 24 * 3_600_000
LOG_LINES_KEPT = 1000

_KINDS = {
    QUEUE: "stream", MODELS: "hash", DELAYED: "zset", LEAVING: "string", REQUEST: "hash", MAILBOX: "list",
    EVENTS: "stream", TRACES: "stream", VALUE: "hash", WEBHOOK: "hash", WEBHOOKS: "zset", DEAD_LETTER: "hash",
    DEAD_LETTERS: "zset",
    f"{DEAD_LETTERS}:{DROPPED}": "string", f"{DEAD_LETTERS}:{LETTER_BYTES}": "hash", "epoch": "string", "a": "hash",
    "code": "string", "apps": "hash", "changes": "stream", "p": "hash", "b": "string", "g": "string",
    "lead": "string", "hosts": "hash", "plan": "hash", "s": "hash", "w": "hash", "drains": "hash", "o": "string",
    "l": "stream", "t": "hash", ENDS: "hash",
    "celery": "list", "celery:fanout": "stream",
}  # fmt: skip


class Keys:
    """The names of one installation's keys.

    Parameters:
      namespace: Keeps installations that share a broker apart; it becomes the hash tag.
    """

    def __init__(self, namespace: str = "qserve") -> None:
        self._tag = f"{{{namespace}}}"
        self._request = self._name(REQUEST, "")
        self.dead_letters: str = self._name(DEAD_LETTERS)
        self.webhooks: str = self._name(WEBHOOKS)
        self.dropped_letters: str = self._name(DEAD_LETTERS, DROPPED)
        self.traces: str = self._name(TRACES)
        self.epoch: str = self._name("epoch")
        self.applications: str = self._name("apps")
        self.changes: str = self._name("changes")
        self.faults: str = self.pool("")
        self.lead: str = self._name("lead")
        self.hosts: str = self._name("hosts")
        self.plan: str = self._name("plan")
        self.drains: str = self._name("drains")
        self.totals: str = self._name("t")
        self.ends: str = self._name(ENDS)

    def _name(self, *parts: str) -> str:
        return ":".join((self._tag, *parts))

    def stream(self, app: str, version: str, deployment: str) -> str:
        return f"{self._tag}:{QUEUE}:{app}:{version}:{deployment}"

    def deployment_of(self, stream: str, app: str) -> str:
        """Return the deployment of a stream, or of a replica's own stream; "" for another application's."""
        return deployment_in(stream) if stream.startswith(self._name(QUEUE, app, "")) else ""

    def request(self, request_id: str) -> str:
        return self._request + request_id

    def dead_letter(self, request_id: str) -> str:
        return self._name(DEAD_LETTER, request_id)

    def events(self, request_id: str) -> str:
        return self._name(EVENTS, request_id)

    def value(self, name: str) -> str:
        return self._name(VALUE, name)

    def webhook(self, request_id: str) -> str:
        return self._name(WEBHOOK, request_id)

    def mailbox(self, process: str, counts: bool = False) -> str:
        return self._name(MAILBOX, process + COUNTS * counts)

    def personal(self, stream: str, replica: str) -> str:
        return f"{stream}{PERSONAL}{replica}"

    def models_of(self, stream: str) -> str:
        return _of_kind(stream, MODELS)

    def delayed_of(self, stream: str) -> str:
        return _of_kind(stream, DELAYED)

    def leaving_of(self, stream: str) -> str:
        return _of_kind(stream, LEAVING)

    def application(self, app: str) -> str:
        return self._name("a", app)

    def code(self, app: str, version: str) -> str:
        return self._name("code", app, version)

    def pool(self, app: str) -> str:
        return self._name("p", app)

    def beat(self, replica: str) -> str:
        return self._name("b", replica)

    def connections(self, replica: str) -> str:
        return self._name("b", replica, "open")

    def gateway(self, process: str) -> str:
        return self._name("g", process)

    def scaled(self, app: str) -> str:
        return self._name("s", app)

    def wishes(self, app: str) -> str:
        return self._name("w", app)

    def rollout(self, app: str) -> str:
        return self._name("o", app)

    def log_lines(self, app: str) -> str:
        return self._name("l", app)

    def control(self, queue: str) -> str:
        return self._name("celery", queue)

    def fanout(self, exchange: str) -> str:
        return self._name("celery", "fanout", exchange)


def deployment_in(stream: str) -> str:
    """Return the deployment that a stream, or a replica's own stream, is named for."""
    return stream.partition(PERSONAL)[0].rpartition(":")[2]


def app_in(stream: str) -> str:
    """Return the application that a stream, or a replica's own stream, is named for."""
    return stream.partition(PERSONAL)[0].rsplit(":", 2)[0].partition("}:")[2].partition(":")[2]


def version_in(stream: str) -> str:
    """Return the version of an application that a stream, or a replica's own stream, is named for."""
    return stream.partition(PERSONAL)[0].rpartition(":")[0].rpartition(":")[2]


def _of_kind(stream: str, kind: str) -> str:
    return stream.replace(f":{QUEUE}:", f":{kind}:", 1)


def kind_of(key: str) -> str:
    """Return the type of a key by its name, as the table above says; "" for a key of others."""
    first, _, rest = key.partition("}:")[2].partition(":")
    return _KINDS.get(f"{first}:{rest.partition(':')[0]}") or _KINDS.get(first, "")
