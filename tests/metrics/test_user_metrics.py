"""`qserve.metrics`: what user code counts, in Ray's words, and what it is refused."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from qserve.base.context import RequestContext, request_context
from qserve.metrics import Counter, Gauge, Histogram, recorder
from qserve.metrics.recorder import MOST_SETS, Recorder
from qserve.wire.totals import Distribution, decode, encode


def counted(here: Recorder, name: str) -> dict[tuple[str, ...], Any]:
    return here.take()[name].values


def test_counters_gauges_and_histograms_are_told_with_the_labels_of_their_replica(here: Recorder) -> None:
    seen = Counter("images_seen", description="Images.", tag_keys=("model",)).set_default_tags({"model": "small"})
    waiting, pixels = Gauge("waiting"), Histogram("pixels", boundaries=[10, 100])
    seen.inc()
    seen.inc(2, tags={"model": "large"})
    waiting.set(7)
    for value in (1, 10, 11, 1000):
        pixels.observe(value)

    told = here.take()

    assert told["images_seen"].about.labels == ("application", "deployment", "model")
    assert told["images_seen"].values == {("shop", "Model", "small"): 1, ("shop", "Model", "large"): 2}
    assert told["waiting"].values == {("shop", "Model", "Model-1"): 7}
    assert told["pixels"].values == {("shop", "Model"): Distribution((2, 1, 1), 1022)}
    assert seen.info == {
        "name": "images_seen", "description": "Images.", "tag_keys": ("model",), "default_tags": {"model": "small"},
    }  # fmt: skip
    assert not here.take(), "only what is new is told"


REFUSED: dict[str, tuple[type[Exception], Callable[[], object], str]] = {
    "a reserved tag": (ValueError, lambda: Counter("a", tag_keys=("replica",)), "the tag 'replica' is reserved"),
    "a reserved tag of a gauge": (ValueError, lambda: Gauge("a", tag_keys=("deployment",)), "'deployment' is reserved"),
    "a reserved tag of a histogram": (
        ValueError, lambda: Histogram("a", boundaries=[1], tag_keys=("application",)), "'application' is reserved",
    ),
    "a reserved default": (
        ValueError, lambda: Counter("a").set_default_tags({"application": "x"}), "'application' is reserved",
    ),
    "a reserved tag with a value": (ValueError, lambda: Counter("a").inc(tags={"replica": "x"}), "is reserved"),
    "an unknown tag": (ValueError, lambda: Counter("a", tag_keys=("b",)).inc(tags={"c": "x"}), "no tag 'c'.*has: 'b'"),
    "a tag without a value": (ValueError, lambda: Counter("a", tag_keys=("b",)).inc(), r"tags \['b'\] have no value"),
    "a tag that is no text": (TypeError, lambda: Counter("a", tag_keys=("b",)).inc(tags={"b": 1}), "must be a string"),  # type: ignore[dict-item]
    "tags as a list": (TypeError, lambda: Counter("a", tag_keys=["b"]), "must be a tuple"),  # type: ignore[arg-type]
    "the bound of a bucket as a tag": (
        ValueError, lambda: Histogram("a", boundaries=[1], tag_keys=("le",)), "'le' is not a name of a tag",
    ),
    "a tag with a dash": (ValueError, lambda: Counter("a", tag_keys=("b-c",)), "'b-c' is not a name of a tag"),
    "a name without end": (ValueError, lambda: Gauge("a" * 201), "is not a name of a metric: use up to 200"),
    "tags without end": (ValueError, lambda: Gauge("a", tag_keys=tuple(f"b{n}" for n in range(21))), "up to 20"),
    "the same tag twice": (ValueError, lambda: Gauge("a", tag_keys=("b", "b")), "up to 20 different names"),
    "an empty name": (ValueError, lambda: Counter(""), "'' is not a name of a metric"),
    "a name with a space": (ValueError, lambda: Gauge("a b"), "'a b' is not a name of a metric"),
    "a name with a line": (ValueError, lambda: Gauge("a\nb 1"), "is not a name of a metric"),
    "a name of qserve's": (ValueError, lambda: Gauge("queue_depth"), "'queue_depth' is a metric of qserve itself"),
    "the lines of one of qserve's": (
        ValueError, lambda: Gauge("serve_http_request_latency_ms_count"), "same lines as the histogram",
    ),
    "the lines of another": (ValueError, lambda: (Counter("a"), Gauge("a_total")), "same lines as the counter 'a'"),
    "another kind": (ValueError, lambda: (Counter("a"), Gauge("a")), "same lines as the counter 'a'"),
    "other tags": (ValueError, lambda: (Counter("a"), Counter("a", tag_keys=("b",))), "same lines"),
    "a counter that falls": (ValueError, lambda: Counter("a").inc(-1), "greater than 0, not -1"),
    "a counter that stands": (ValueError, lambda: Counter("a").inc(0), "greater than 0, not 0"),
    "a counter without end": (ValueError, lambda: Counter("a").inc(float("inf")), "greater than 0, not inf"),
    "text": (TypeError, lambda: Gauge("a").set("1"), "takes a number, not '1'"),  # type: ignore[arg-type]
    "a truth": (TypeError, lambda: Counter("a").inc(True), "takes a number, not True"),
    "nothing observed": (ValueError, lambda: Histogram("a", boundaries=[1]).observe(float("nan")), "finite number"),
    "no boundaries": (ValueError, lambda: Histogram("a"), "boundaries must be"),
    "boundaries in disorder": (ValueError, lambda: Histogram("a", boundaries=[2, 1]), "boundaries must be"),
    "boundaries from 0": (ValueError, lambda: Histogram("a", boundaries=[0, 1]), "boundaries must be"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_counted_is_refused_with_what_to_write_instead(what: str, here: Recorder) -> None:
    kind, act, words = REFUSED[what]

    with pytest.raises(kind, match=words):
        act()
    assert not here.take()


def test_tag_values_without_end_are_counted_together_and_said_once(
    here: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    seen, users = Counter("seen", tag_keys=("user",)), Gauge("active", tag_keys=("user",))
    with caplog.at_level(logging.WARNING):
        for number in range(MOST_SETS + 300):
            seen.inc(tags={"user": str(number)})
            users.set(1, tags={"user": str(number)})

    told = here.take()
    for name in ("seen", "active"):
        assert len(told[name].values) == MOST_SETS + 1
        said = [
            record.getMessage() for record in caplog.records if f"the metric {name} has more" in record.getMessage()
        ]
        assert len(said) == 1
    assert told["seen"].values["shop", "Model", "other"] == 300, "nothing is lost"


def test_the_value_of_a_tag_is_cut_and_metrics_without_end_are_refused(here: Recorder) -> None:
    Counter("seen", description="y" * 10_000, tag_keys=("user",)).inc(tags={"user": "x" * 10_000})
    _, told = decode(encode("me", here.take()))  # else the others would refuse all that this process says
    assert len(next(iter(told["seen"].values))[2]) == 200

    with pytest.raises(ValueError, match="one more than 300 metrics; use tags"):
        for number in range(301):
            Counter(f"seen_{number}")


def test_a_metric_that_travels_with_code_counts_where_it_arrives(here: Recorder) -> None:
    seen = Counter("seen", tag_keys=("model",)).set_default_tags({"model": "a"})
    seen.inc()

    pickle.loads(pickle.dumps(seen)).inc()

    assert counted(here, "seen") == {("shop", "Model", "a"): 2}


def test_the_tag_route_is_that_of_the_request_unless_it_is_given(here: Recorder) -> None:
    seen = Counter("seen", tag_keys=("route",))
    for route in ("/a", "/b"):
        token = request_context.set(RequestContext(route=route))
        seen.inc()
        request_context.reset(token)
    seen.inc(tags={"route": "/c"})

    assert {labels[2]: value for labels, value in counted(here, "seen").items()} == {"/a": 1, "/b": 1, "/c": 1}


def test_numbers_of_numpy_are_numbers(here: Recorder) -> None:
    pixels = Histogram("pixels", boundaries=[1])
    for kind in (numpy.float32, numpy.float64, numpy.int64):
        pixels.observe(kind(2))

    assert counted(here, "pixels") == {("shop", "Model"): Distribution((0, 3), 6)}


def test_outside_of_a_replica_and_in_a_child_that_user_code_forks_nothing_is_counted(here: Recorder) -> None:
    seen = Counter("seen")
    seen.inc()
    pid = os.fork()
    if not pid:
        seen.inc()
        os._exit(recorder.here is not None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    recorder.install(None)
    seen.inc()

    assert counted(here, "seen") == {("shop", "Model"): 1}
