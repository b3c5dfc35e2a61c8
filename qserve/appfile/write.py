"""Write compiled applications as the text of a config file."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from qserve.appfile.options import options_to_write
from qserve.appfile.yaml_text import yaml_of
from qserve.define.compile import CompiledApplication
from qserve.define.deployments import Deployment
from qserve.wire.application import ApplicationRecord

_ONLY_IN_CODE = {"name", "init_args", "init_kwargs", "route_prefix", "use_new_handle_api", "version"}


def part_of(built: CompiledApplication, import_path: str, args: dict[str, Any]) -> dict[str, Any]:
    """Return an application as it is written in a file, with the options that its code sets."""
    part: dict[str, Any] = {
        "name": built.name,
        "route_prefix": built.ingress.route_prefix,
        "import_path": import_path,
    }
    if args:
        part["args"] = args
    part["deployments"] = [{"name": one.name, **_options(one)} for one in built.deployments]
    return part


def part_of_record(record: ApplicationRecord) -> dict[str, Any]:
    """Return a deployed application as it is written in a file; if it came from one, exactly as it was there."""
    if record.config:
        return record.part
    part: dict[str, Any] = {"name": record.name, "route_prefix": record.route_prefix}
    if record.target:
        part["import_path"] = record.target
    if record.args:
        part["args"] = record.arguments
    if record.external_scaler:
        part["external_scaler_enabled"] = True
    part["deployments"] = [{"name": name, **options_to_write(one)} for name, one in record.replicated.items()]
    return part


def written(parts: Iterable[dict[str, Any]], header: str = "", **more: Any) -> str:
    """Return the text of a file.

    Parameters:
      parts: The applications, as ``part_of`` returns them.
      header: Comes first, as a comment.
      more: The other keys of the file.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text = yaml_of({**more, "applications": list(parts)})
    return f"{comment}\n{text}" if comment else text


def _options(deployment: Deployment) -> dict[str, Any]:
    config = deployment.config
    found = {"num_replicas": config.num_replicas} if config.autoscaling_config is None else {}
    for option in type(config).model_fields:
        if option in config.model_fields_set and option not in _ONLY_IN_CODE:
            value = getattr(config, option)
            if value is not None:
                found[option] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.__qualname__ if inspect.isclass(value) else value
