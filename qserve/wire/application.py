"""The registered description of an application: routes, options and the plans of its graphs; no user code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import msgpack

from qserve.base.keys import Keys
from qserve.exceptions import PayloadError
from qserve.graph.plan import InputKey, Plan, Source, Step
from qserve.wire.codec import Codec, known, unpack

FORMAT = 1
"""The newest format of an application's record that is read here."""


class NewerRecord(PayloadError):
    """Raised when a record says something that only a later version of qserve knows, and that must not be left out."""


@dataclass(frozen=True)
class Scaling:
    """How the number of replicas follows the load; the names are Ray Serve's.

    Parameters:
      policy: The ``module:function`` that decides instead; "" for none.
      policy_kwargs: Its arguments, as JSON.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    initial_replicas: int | None = None
    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    aggregation_function: str = "mean"
    policy: str = ""
    policy_kwargs: str = "{}"

    @property
    def policy_arguments(self) -> dict[str, Any]:
        """The ``policy_kwargs`` as they were given."""
        return json.loads(self.policy_kwargs)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Resources:
    """What each replica of a deployment takes of its host.

    Parameters:
      cpus: None takes one place, and says nothing of threads.
      gpus: So many, or a part of one.
      memory: In bytes; 0 for no limit.
      other: Custom resources by name.
      labels: What the host must be: a value, ``!value``, ``in(a, b)`` or ``!in(a, b)`` by label.
      per_host: How many replicas one host may run; None for no limit.
    """

    cpus: float | None = None
    gpus: float = 0.0
    memory: int = 0
    other: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    per_host: int | None = None


@dataclass(frozen=True)
class TaskQueue:
    """The queue of Celery tasks that a deployment consumes.

    Parameters:
      handlers: The method of each task, by the task's name.
      max_retries: How often a task that failed is tried again.
      failed: The queue for tasks that failed for good; "" for none.
      unprocessable: The queue for tasks with unknown names, and for messages that cannot be read; "" for none.
    """

    queue: str
    handlers: dict[str, str]
    max_retries: int = 3
    failed: str = ""
    unprocessable: str = ""


@dataclass(frozen=True)
class DeploymentRecord:
    """The options of one deployment that callers and supervisors need.

    Parameters:
      num_replicas: The number of replicas to run, over all hosts.
      max_ongoing: How many calls one replica runs at the same time.
      max_queued: How many calls may wait; -1 for no limit.
      full_status, full_retry_after_s: How a call beyond that is refused; None: as long as the oldest has waited.
      grace_s: How long a stopping replica may take to finish its running calls.
      health_period_s, health_timeout_s: How often ``check_health`` is called, and how long it may take.
      user_config: Passed to ``reconfigure``, as JSON; "" when there is none.
      max_execution_s: How long one call may run; None for as long as its deadline allows.
      max_retries, retry_on, retry_backoff_s: How often a call is retried, after which errors, and with what pause.
      replicated: False for a driver whose work the gateway does.
      scaling: How the number of replicas follows the load; None for ``num_replicas``.
      resources: What each of them takes of its host.
      env: Variables of their environment.
      logging: The ``logging_config``, those keys that were given.
      version: The user's own name for the code of this deployment; "" for none.
      constructor_retries: How many failed starts end a deploy at most, whatever the number of replicas.
      tasks: The queue of Celery tasks that it consumes; None for a deployment that is called only.
      surge: How many replicas there may be beyond those that are wanted while a new version comes up, in percent; None
        for as many as there is room for.
      preload: The ``module:function`` that is run before its replicas are forked; "" for none.
      max_requests, max_memory: After so many calls, or with more bytes than that, a replica is replaced; None for
        never.
    """

    name: str
    num_replicas: int = 1
    max_ongoing: int = 100
    max_queued: int = -1
    full_status: int = 503
    full_retry_after_s: float | None = None
    grace_s: float = 20.0
    health_period_s: float = 10.0
    health_timeout_s: float = 30.0
    user_config: str = ""
    max_execution_s: float | None = None
    max_retries: int = 0
    retry_on: list[str] | None = None
    retry_backoff_s: float = 0.1
    replicated: bool = True
    scaling: Scaling | None = None
    resources: Resources = field(default_factory=Resources)
    env: dict[str, str] = field(default_factory=dict)
    logging: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    constructor_retries: int = 20
    tasks: TaskQueue | None = None
    surge: float | None = None
    preload: str = ""
    max_requests: int | None = None
    max_memory: int | None = None

    @property
    def user_config_value(self) -> Any:
        """The user_config; None when there is none."""
        return json.loads(self.user_config) if self.user_config else None

    @cached_property
    def config(self) -> str:
        """The digest of the options that replicas take while they run, by which they report which ones they use.

        Of those that are given only: then it is the same for a version of qserve that has more of them.
        """
        given = [(name, value) for name, default in _TAKEN.items() if (value := getattr(self, name)) != default]
        return hashlib.sha256(repr(given).encode()).hexdigest()[:12]

    @property
    def at_start(self) -> DeploymentRecord:
        """The options for which a replica has to be started again, and the defaults of the others."""
        return DeploymentRecord(self.name, **{name: getattr(self, name) for name in _AT_START})


MISSING, DIFFERING = "missing", "differing"
"""Workers that do not have the module of an application; also those whose own modules are others."""
_AT_START = ("replicated", "resources", "env", "version", "preload", "max_requests")
_OF_CALLERS = (
    "name", "num_replicas", "scaling", "max_queued", "full_status", "full_retry_after_s", "constructor_retries",
    "surge",
)  # fmt: skip
_TAKEN = {
    name: default
    for name, default in sorted(vars(DeploymentRecord("")).items())
    if name not in (*_AT_START, *_OF_CALLERS)
}


@dataclass(frozen=True)
class DriverRecord:
    """How the gateway acts as the application's DAGDriver.

    Parameters:
      adapter: The name of a built-in adapter; "" when user code on a replica of the driver adapts requests.
      routes: The graphs' names in their order; None when there is a single graph.
      direct: Graphs that consist of one deployment, with its name: a call by handle passes all its arguments on.
      streams: Graphs whose last step is a generator, so that its items are sent as they come.
    """

    adapter: str = ""
    routes: tuple[str, ...] | None = None
    direct: dict[str, str] = field(default_factory=dict)
    streams: tuple[str, ...] = ()


@dataclass(frozen=True)
class ApplicationRecord:
    """One version of an application.

    Parameters:
      version: Changes with every deploy.
      target: ``module:node`` that replicas import; "" when the code itself is stored in the broker.
      args: The arguments of the builder that ``target`` names, as JSON; "" when there are none.
      config: What a file says of the application, as JSON; "" if no file has brought it.
      modules: Digests of the user's modules that ``target`` imports, by name: replicas run this code and no other.
      code_version: The user's own name for that code, which takes the place of the digests; "" when there is none.
      change, place: The change of the registry that it was registered with, and where; see ``Registry``.
      code_digest: That of the code that is stored in the broker; "" when replicas import it.
      sent_for: Which workers run code that the deploy has sent beside ``target``: ``MISSING``, ``DIFFERING``, or "" for
        none.
      route_prefix: None for an application without HTTP.
      graphs: Encoded plans by name; see ``dump_plan``.
      deployed_at: When it was deployed, as a Unix time in seconds; 0 when that is not known.
      external_scaler: Whether something outside decides how many replicas there are.
      capacity: Which part of their numbers of replicas the deployments have, in percent; None for all.
      format: More than 1 if something is said that a reader must not leave out: those that read less refuse the record.
      description: Its HTTP interface, see ``wire.description``; b"" where none could be made.
      share, share_until_ms: The part of new requests, from 0 to 1, that a version gets which is being deployed, and
        until when by the broker's clock; 0 if it has never got any.
      handles: The deployments whose handles a deployment was bound to, by its name; for pictures.
    """

    name: str
    version: str
    ingress: str
    route_prefix: str | None = "/"
    target: str = ""
    args: str = ""
    config: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    code_version: str = ""
    change: str = field(default="0-0", compare=False)
    place: str = field(default="", compare=False)
    code_digest: str = ""
    timeout_s: float | None = None
    cancel_on_disconnect: bool = True
    deployments: dict[str, DeploymentRecord] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)
    driver: DriverRecord | None = None
    deployed_at: float = field(default=0.0, compare=False)
    sent_for: str = field(default="", compare=False)
    external_scaler: bool = False
    capacity: float | None = None
    format: int = field(default=1, compare=False)
    description: bytes = field(default=b"", compare=False, repr=False)
    share: float = field(default=0.0, compare=False)
    share_until_ms: float = field(default=0.0, compare=False)
    handles: dict[str, list[str]] = field(default_factory=dict, compare=False)

    @property
    def replicated(self) -> dict[str, DeploymentRecord]:
        """The deployments that have replicas, by name: a driver that the gateway runs has none."""
        return {name: deployment for name, deployment in self.deployments.items() if deployment.replicated}

    def stream(self, keys: Keys, deployment: str) -> str:
        """Return the name of a deployment's queue; each version has its own, so that versions never mix."""
        return keys.stream(self.name, self.version, deployment)

    def has_code_of(self, other: ApplicationRecord) -> bool:
        """Return whether both versions run the same code, so that one may finish what the other has begun."""
        mine, others = [
            (record.code_version, {} if record.code_version else record.modules, record.code_digest)
            for record in (self, other)
        ]
        is_same_target = (self.target, self.args) == (other.target, other.args)
        return is_same_target and mine == others != ("", {}, "")

    def keeps_replicas_of(self, other: ApplicationRecord) -> bool:
        """Return whether replicas of the other version can go on as those of this one, with its options."""
        if not self.has_code_of(other) or self._at_start != other._at_start:
            return False
        # user code cannot take that it has no user_config any more
        return all(one.user_config or not other.deployments[name].user_config for name, one in self.deployments.items())

    @property
    def _at_start(self) -> ApplicationRecord:
        deployments = {name: one.at_start for name, one in self.deployments.items()}
        return replace(
            self,
            version="",
            config="",
            modules={},
            route_prefix=None,
            timeout_s=None,
            cancel_on_disconnect=True,
            deployments=deployments,
            external_scaler=False,
            capacity=None,
        )

    def other_graphs(self, other: ApplicationRecord) -> list[str]:
        """Return the names of this version's graphs that the other one does not have, or has in another form."""
        plans = other.plans
        return [name for name, (plan, _) in self.plans.items() if name not in plans or plans[name][0] != plan]

    def encode(self) -> bytes:
        """Return the record as msgpack."""
        return msgpack.packb(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> ApplicationRecord:
        """Read what ``encode`` wrote.

        Raises:
          NewerRecord: A later version of qserve wrote it, and this one would do something wrong with it.
          PayloadError: It is something else.
        """
        try:
            parts = known(cls, unpack(data, "a record"))
            if parts.get("format", 1) > FORMAT:
                raise NewerRecord(
                    f"application {parts['name']!r} was deployed by a newer qserve, with what this one does not know:"
                    " upgrade this process"
                )
            driver = parts.pop("driver")
            deployments = {name: _deployment(fields) for name, fields in parts.pop("deployments").items()}
            if driver:
                driver = known(DriverRecord, driver)
                routes = driver.pop("routes")
                streams = tuple(driver.pop("streams", ()))
                driver = DriverRecord(**driver, routes=None if routes is None else tuple(routes), streams=streams)
            graphs = dict(parts.pop("graphs"))
            return cls(**parts, graphs=graphs, deployments=deployments, driver=driver or None)
        except NewerRecord:
            raise
        except Exception as error:
            raise PayloadError(f"an application's record cannot be read: {type(error).__name__}: {error}") from error

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of its builder."""
        return json.loads(self.args) if self.args else {}

    @property
    def part(self) -> dict[str, Any]:
        """What a file says of the application; empty if no file has brought it."""
        return json.loads(self.config) if self.config else {}

    @property
    def code(self) -> str:
        """The name of its code for messages: the user's, or a digest of all modules; "" for code in the broker."""
        if self.code_version or not self.modules:
            return self.code_version
        return digest_of(self.modules)

    @cached_property
    def limited(self) -> tuple[DeploymentRecord, ...]:
        """The deployments that limit how many calls may wait."""
        return tuple(deployment for deployment in self.deployments.values() if deployment.max_queued >= 0)

    @cached_property
    def plans(self) -> dict[str, tuple[Plan, tuple[bytes, ...]]]:
        """The graphs by name: each one's plan, and the encoded arguments of its steps."""
        return {name: load_plan(parts) for name, parts in self.graphs.items()}


def condition_of(wanted: str) -> tuple[list[str], bool]:
    """Return the values that a label's condition names, and whether the label must be one of them, or none.

    The conditions are ``a``, ``!a``, ``in(a, b)`` and ``!in(a, b)``.
    """
    plain = wanted.removeprefix("!")
    is_list = plain.startswith("in(") and plain.endswith(")")
    values = [value.strip() for value in plain[3:-1].split(",")] if is_list else [plain]
    return values, plain == wanted


def _deployment(found: dict[str, Any]) -> DeploymentRecord:
    scaling, resources, tasks = found.pop("scaling", None), found.pop("resources", {}), found.pop("tasks", None)
    return DeploymentRecord(
        **known(DeploymentRecord, found),
        scaling=Scaling(**known(Scaling, scaling)) if scaling else None,
        resources=Resources(**known(Resources, resources)),
        tasks=TaskQueue(**known(TaskQueue, tasks)) if tasks else None,
    )


def digest_of(modules: dict[str, str]) -> str:
    """Return one short digest for those of all modules."""
    return hashlib.sha256(repr(sorted(modules.items())).encode()).hexdigest()[:12]


def dump_plan(plan: Plan, codec: Codec) -> list[Any]:
    """Return a plan as plain lists, with each step's arguments encoded by ``codec``."""
    steps = [
        [step.deployment, step.method, step.needs, codec.encode([list(step.args), dict(step.kwargs)])]
        for step in plan.steps
    ]
    feeds = [[_dump_source(source), list(map(list, targets))] for source, targets in plan.feeds.items()]
    return [steps, feeds, _dump_source(plan.output)]


def load_plan(parts: list[Any]) -> tuple[Plan, tuple[bytes, ...]]:
    """Read what ``dump_plan`` wrote.

    Returns:
      The plan without arguments, and the encoded arguments of each step, which the replica that runs it decodes.

    Raises:
      PayloadError: It is something else.
    """
    try:
        steps, feeds, output = parts
        plan = Plan(
            steps=tuple(Step(deployment=name, method=method, needs=needs) for name, method, needs, _ in steps),
            feeds={_load_source(source): tuple((step, slot) for step, slot in targets) for source, targets in feeds},
            output=_load_source(output),
        )
        return plan, tuple(arguments for *_, arguments in steps)
    except Exception as error:
        raise PayloadError(f"this is not a graph's plan: {type(error).__name__}") from error


def _dump_source(source: Source) -> Any:
    return source if isinstance(source, int) else [source.kind, source.key]


def _load_source(packed: Any) -> Source:
    return packed if isinstance(packed, int) else InputKey(packed[0], packed[1])
