"""The keys of a config file: those of Ray Serve, and the options of deployments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from qserve.appfile.yaml_text import FileError, Node, place
from qserve.base import unused
from qserve.define.options import ActorOptions, AutoscalingConfig, DeploymentOptions, LoggingConfig, check_runtime_env

NO_EFFECT = "no effect: "
"""How the description of a key without effect begins."""
_ONLY_IN_CODE = {"init_args", "init_kwargs", "route_prefix", "use_new_handle_api", "version"}
"""Options that only the code of a deployment, or its application, can set."""


TRACED_SHARE = 0.01
"""The share of traces that is recorded where ``tracing_config`` does not say."""
_LOGS = {"log_level": "QSERVE_LOG_LEVEL", "encoding": "QSERVE_LOG_FORMAT"}


class Part(BaseModel):
    """A part of a file. Unknown keys have been refused before it is built."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class HTTPPart(Part):
    """Where the gateway listens, and how long a request may take."""

    host: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    request_timeout_s: float | None = Field(default=None, gt=0)


class TracingPart(Part):
    """Whether spans are made, where they go, and of which share of the traces that begin here."""

    enabled: bool | None = None
    exporter_import_path: str | None = Field(default=None, pattern=r"^[\w.]+[:.]\w+$")
    sampling_ratio: float | None = Field(default=None, ge=0, le=1)

    @property
    def variables(self) -> dict[str, Any]:
        """The same as environment variables; without a ratio, one trace of a hundred is recorded, as in Ray Serve."""
        if self.enabled is None:
            return {}
        ratio = TRACED_SHARE if self.sampling_ratio is None else self.sampling_ratio
        more = {"QSERVE_TRACING_EXPORTER": self.exporter_import_path, "QSERVE_TRACING_SAMPLING_RATIO": ratio}
        return {"QSERVE_TRACING": "on", **more} if self.enabled else {"QSERVE_TRACING": "off"}


class DeploymentPart(Part, extra="allow"):
    """The options of one deployment that a file changes; see ``DeploymentOptions``."""

    name: str = Field(min_length=1)

    @property
    def options(self) -> dict[str, Any]:
        """The options that the file gives, as ``Deployment.options`` takes them."""
        return dict(self.model_extra or {})


class ApplicationPart(Part):
    """One application.

    Parameters:
      name: Unique in the file.
      route_prefix: Its path; None for no HTTP, and if the file does not say, the path of its code.
      import_path: ``module:node`` or ``module:builder``.
      args: The arguments of the builder.
      logging_config: For deployments that have none of their own.
      runtime_env: Its ``env_vars`` hold for all deployments, unless a deployment sets the same variable.
      deployments: Those whose options the file changes.
    """

    name: str = Field(default="default", min_length=1)
    route_prefix: str | None = None
    import_path: str
    args: dict[str, Any] = Field(default_factory=dict)
    logging_config: LoggingConfig | None = None
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    external_scaler_enabled: bool = False
    deployments: list[DeploymentPart] = Field(default_factory=list)

    @field_validator("runtime_env")
    @classmethod
    def _known(cls, given: dict[str, Any]) -> dict[str, Any]:
        check_runtime_env(given)
        return given


class ServeFile(Part):
    """A config file: the applications, and where the gateway listens."""

    http_options: HTTPPart = HTTPPart()
    logging_config: LoggingConfig | None = None
    tracing_config: TracingPart | None = None
    target_capacity: float | None = Field(default=None, ge=0, le=100)
    applications: list[ApplicationPart]
    _name: str = PrivateAttr("the file")
    _root: Node = PrivateAttr(Node(None))
    _without_effect: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)

    def problem(self, message: str, *path: str | int) -> FileError:
        """Return the error for what is wrong with a value of this file, with its place."""
        return FileError(f"{self.where(*path)}: {message}")

    def where(self, *path: str | int) -> str:
        """Say where a value of this file is, for messages."""
        node, found = self._root.at(path)
        return place(self._name, node, found)

    def place(self, *path: str | int) -> str:
        """Return the file and the line of a value."""
        return f"{self._name}:{self._root.at(path)[0].line}"

    @property
    def variables(self) -> dict[str, str]:
        """The file's settings for the gateway, the logs and the spans of `qserve run`, as environment variables."""
        http, logs = self.http_options, self.logging_config
        found: dict[str, Any] = {
            "QSERVE_HOST": http.host,
            "QSERVE_PORT": http.port,
            "QSERVE_REQUEST_TIMEOUT_S": http.request_timeout_s,
        }
        found |= {} if logs is None else logs.variables
        found |= {} if self.tracing_config is None else self.tracing_config.variables
        return {name: str(value) for name, value in found.items() if value is not None}

    def logs_of(self, number: int, env: Mapping[str, str]) -> LoggingConfig | None:
        """Return the log settings of an application: its own, or those of the file that no variable overrides."""
        shared = self.logging_config
        if self.applications[number].logging_config is not None or shared is None:
            return self.applications[number].logging_config
        return LoggingConfig(
            **{name: value for name, value in shared.given.items() if not env.get(_LOGS.get(name, ""))}
        )

    def part(self, number: int) -> dict[str, Any]:
        """Return an application as it is written in the file."""
        return dict(self._root.at(("applications", number))[0].value)

    @property
    def without_effect(self) -> Mapping[tuple[str | int, ...], str]:
        """The keys of the file that have no effect, each with the reason."""
        return self._without_effect

    def warn(self, *, is_run: bool = False) -> None:
        """Warn once about all keys of the file that have no effect.

        Parameters:
          is_run: Whether `qserve run` reads the file; it obeys the keys of the gateway and of the logs.
        """
        reasons = {place("", Node(None), path).strip(): why for path, why in self._without_effect.items()}
        if not is_run:
            address = [key for key in ("host", "port") if key in self.http_options.model_fields_set]
            reasons |= {f"http_options.{key}": unused.ADDRESS for key in address}
            reasons |= {} if self.tracing_config is None else {"tracing_config": unused.TRACING}
        unused.warn(self._name, reasons, reasons)
        for app in self.applications:
            unused.warn_of_runtime_env(f"application {app.name!r} of {self._name}", app.runtime_env)


_WITHOUT_EFFECT: dict[str, Mapping[str, str]] = {
    "ServeFile": unused.FILE,
    "HTTPPart": unused.HTTP,
    "ApplicationPart": unused.FILE_APPLICATION,
    "DeploymentPart": unused.FILE_DEPLOYMENT,
}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the file, for editors: https://json-schema.org/draft/2020-12."""
    schema = ServeFile.model_json_schema(by_alias=False)
    options = DeploymentOptions.model_json_schema(by_alias=False)
    parts = {**options.pop("$defs"), **schema.pop("$defs"), "ServeFile": schema}
    own = parts["DeploymentPart"]
    own["properties"] |= {
        name: {"anyOf": [form, {"type": "null"}]}
        for name, form in options["properties"].items()
        if name not in {*_ONLY_IN_CODE, "name"}
    }
    own["properties"]["max_ongoing_requests"] = own["properties"]["max_concurrent_queries"]
    own["properties"]["num_replicas"]["anyOf"].append({"const": "auto"})
    own["additionalProperties"] = False
    for name, field in AutoscalingConfig.model_fields.items():
        if field.alias:
            scaling = parts["AutoscalingConfig"]["properties"]
            scaling[field.alias] = scaling[name]
    known = ActorOptions.model_json_schema()["properties"]
    parts["ActorOptions"] = {
        "type": "object",
        "properties": {key: known.get(key, {}) for key in sorted(unused.ACTOR_OPTIONS)},
        "additionalProperties": False,
    }
    own["properties"]["ray_actor_options"] = {"anyOf": [{"$ref": "#/$defs/ActorOptions"}, {"type": "null"}]}
    for name, reasons in _WITHOUT_EFFECT.items():
        for key, why in reasons.items():
            form = parts[name]["properties"].setdefault(key, {})
            form["description"] = f"{NO_EFFECT}{why}"
    del parts["ServeFile"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "qserve: what runs",
        "$defs": parts,
    }


def form_of(schema: Mapping[str, Any], form: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """Return the part of a schema that describes a mapping or a list: references and alternatives are followed."""
    if "$ref" in form:
        return form_of(schema, schema["$defs"][form["$ref"].rpartition("/")[2]], value)
    kind = "object" if isinstance(value, dict) else "array"
    for other in form.get("anyOf", ()):
        found = form_of(schema, other, value)
        if found.get("type") == kind:
            return found
    return form
