"""What a replica is told before user code is imported: its threads, GPUs, environment variables and logs."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Mapping
from functools import cache

from qserve.base.log import log_to_terminal, set_level
from qserve_workers.replica.commit import access_log
from qserve_workers.replica.spec import ReplicaSpec

THREADS = (
    "OMP_NUM_THREADS",  # also torch
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
"""The variables from which the usual libraries take their number of threads when they are imported."""
DEVICES = "CUDA_VISIBLE_DEVICES"


def apply(spec: ReplicaSpec) -> None:
    """Set this process up: variables of ``runtime_env`` win over those that follow from ``num_cpus``."""
    os.environ.update(variables_of(spec, _inherited()))
    time.tzset()  # TZ may be among them


@cache
def _inherited() -> Mapping[str, str]:
    """The variables of the worker, also in a replica that is forked from a process which has set its own."""
    return dict(os.environ)


def variables_of(spec: ReplicaSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a replica that differ from those of its worker."""
    cpus, found = spec.options.resources.cpus, {}
    if cpus is not None:
        found.update(dict.fromkeys(THREADS, str(max(1, math.floor(cpus)))))
    if spec.devices:
        found[DEVICES] = ",".join(spec.devices)
    for name, value in spec.options.env.items():
        found[name] = re.sub(r"\$\{(\w+)\}", lambda part: inherited.get(part[1], ""), value)
    return found


def log_as_told(spec: ReplicaSpec) -> None:
    """Log as the ``logging_config`` of the deployment says; the access log only if it says so."""
    chosen = spec.options.logging
    app, deployment = spec.record.name, spec.deployment
    members = {"application": app, "deployment": deployment, "replica": spec.name}
    members |= {"component_name": "replica", "component_id": spec.name}
    log_to_terminal(deployment, spec.settings, chosen, f"{app}-{deployment}", members)
    set_level(access_log, logging.NOTSET if chosen.get("enable_access_log") else logging.CRITICAL)
