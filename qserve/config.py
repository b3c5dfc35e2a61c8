"""Public import path of the configuration of deployments and HTTP."""

from __future__ import annotations

from enum import StrEnum

from qserve.define.http_options import HTTPOptions as HTTPOptions
from qserve.define.options import AutoscalingConfig as AutoscalingConfig
from qserve.define.options import AutoscalingPolicy as AutoscalingPolicy
from qserve.define.options import BackpressureConfig as BackpressureConfig
from qserve.engine.policy import AutoscalingContext as AutoscalingContext


class AggregationFunction(StrEnum):
    """The values of ``AutoscalingConfig.aggregation_function``, for programs written for Ray Serve."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


class ProxyLocation(StrEnum):
    """The places of Ray Serve's proxies; without effect here, as ``start`` says."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"
