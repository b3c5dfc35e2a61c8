"""The picture of an installation as plain data, for the live page and for terminals; ``asdict`` makes JSON of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """A box of a graph.

    Parameters:
      id: Unique in the graph.
      kind: ``input`` and ``output`` for where requests come in and leave, ``driver`` for a deployment that adapts them,
        ``step`` for a call in a plan, ``handle`` for a deployment that is called by its handle.
      step: The number of the step in the plan, as traces and dead letters have it; None for other kinds.
      deployment: Which deployment does the work; "" for none.
      method: The method that a step calls.
    """

    id: str
    kind: str
    step: int | None = None
    deployment: str = ""
    method: str = ""


@dataclass(frozen=True)
class Graph:
    """A graph of an application, as it was deployed.

    Parameters:
      name: The route of the driver, ``""`` for the only one, ``Driver:0`` for one that a deployment holds.
      edges: Pairs of IDs of nodes, in the direction in which values go; from a deployment to one of kind ``handle`` in
        that of calls.
    """

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Deployment:
    """A deployment: its calls, of all versions together, and its replicas.

    Parameters:
      status: As ``qserve status`` has it.
      waiting, running, delayed: Calls that no replica has fetched, that replicas hold, and that wait for another try.
      oldest_s: For how long the oldest of those that wait has waited.
      rate, errors: Calls that have ended, and those of them that raised, in a second; None until two numbers are known.
      p50_ms, p99_ms: Time in user code over the last seconds; None if no call has ended.
      wait_p50_ms: Time in the queue until user code began, likewise.
      replicas: How many there are in each state.
      wanted: How many replicas there are to be.
      max_ongoing: How many calls one replica runs at a time.
      utilisation: The share of the places of all running replicas that is taken, from 0 to 1.
      paused_by: Who has paused it; "" if it is not paused.
      is_autoscaled: Whether its load decides how many replicas there are.
      message: What is wrong with it; "" for nothing.
    """

    name: str
    status: str
    waiting: int = 0
    running: int = 0
    delayed: int = 0
    oldest_s: float = 0.0
    rate: float | None = None
    errors: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    wait_p50_ms: float | None = None
    replicas: dict[str, int] = field(default_factory=dict)
    wanted: int = 0
    max_ongoing: int = 0
    utilisation: float = 0.0
    paused_by: str = ""
    is_autoscaled: bool = False
    message: str = ""


@dataclass(frozen=True)
class Bottleneck:
    """The deployment that holds an application up, for how long it makes calls wait, and why."""

    deployment: str
    delay_s: float
    why: str


@dataclass(frozen=True)
class Change:
    """A deploy or deletion that is under way.

    Parameters:
      version: The version that comes up; "" for a deletion.
      share: The part of new requests that it gets, from 0 to 1.
      by: Who deploys, and where.
      started_s: When it began, in Unix seconds by the broker's clock.
      running: How many of its replicas run, by deployment.
    """

    version: str
    share: float
    by: str
    started_s: float
    running: dict[str, int]


@dataclass(frozen=True)
class Replica:
    """A replica as it was reported last."""

    name: str
    application: str
    deployment: str
    version: str
    state: str
    host: str
    worker: str
    pid: int
    message: str = ""


@dataclass(frozen=True)
class Application:
    """An application.

    Parameters:
      route: Its path; None without HTTP.
      status, message: As ``qserve status`` has them.
      deployed_s: When its version was deployed, in Unix seconds; 0 if that is not known.
      change: The deploy that is under way; None if there is none.
      bottleneck: What holds it up; None for nothing.
    """

    name: str
    route: str | None
    status: str
    version: str
    message: str
    deployed_s: float
    deployments: tuple[Deployment, ...]
    graphs: tuple[Graph, ...]
    change: Change | None = None
    bottleneck: Bottleneck | None = None


@dataclass(frozen=True)
class Stored:
    """The large values in one store, as a worker sees them.

    Parameters:
      values, bytes: How many there are, and what they take.
      oldest_s: For how long the oldest of them has been there.
      fallbacks: How many found no room there since the worker began, and went to the next store.
    """

    store: str
    values: int
    bytes: int
    oldest_s: float
    fallbacks: int


@dataclass(frozen=True)
class Host:
    """A worker that offers places for replicas.

    Parameters:
      worker: Its ID.
      places: How many replicas it runs at most; 0 if it only runs those that it was started for.
      used: How many run or start there.
      is_draining: Whether it is to run nothing.
      stored: The large values in each store of which it knows.
    """

    worker: str
    host: str
    places: int
    used: int
    devices: tuple[str, ...]
    is_draining: bool
    stored: tuple[Stored, ...] = ()


@dataclass(frozen=True)
class Broker:
    """The broker.

    Parameters:
      is_up: Whether it replied. If it did not, the rest of the picture is what was known last.
      used_bytes, limit_bytes, clients: Its memory, the most that it may use (0 for no limit), and its connections.
      refuses: Why it refuses new requests; "" if it takes them.
      commit_p50_ms, commit_p99_ms: How long replicas waited for a commit over the last seconds; None if there was none.
    """

    is_up: bool = False
    used_bytes: int = 0
    limit_bytes: int = 0
    clients: int = 0
    refuses: str = ""
    commit_p50_ms: float | None = None
    commit_p99_ms: float | None = None


@dataclass(frozen=True)
class Picture:
    """An installation now.

    Parameters:
      at_s: When it was looked at, in Unix seconds by the broker's clock.
      dead_letters: How many are kept.
    """

    at_s: float = 0.0
    broker: Broker = Broker()
    applications: tuple[Application, ...] = ()
    replicas: tuple[Replica, ...] = ()
    hosts: tuple[Host, ...] = ()
    dead_letters: int = 0
