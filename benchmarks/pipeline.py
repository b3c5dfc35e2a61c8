#!/usr/bin/env python3
"""Compare a real pipeline on qserve, Ray Serve and BentoML: an image, two models in batches, one judgement.

    python benchmarks/pipeline.py [--sizes qserve,ray,bentoml] [--seconds 3] [--quick]

A PNG of a handwritten digit is posted and made smaller; a random forest and a logistic regression judge it, each up
to 32 images at a time; their judgements are combined. Each step is a process of its own. The programs are
digits_qserve.py, digits_ray.py and digits_bentoml.py in benchmarks/apps. Lines are lines of code without what all share
(digits_models.py). See compare.py for how systems are installed and measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.figures import Figure, Panel
from harness.processes import adopt_orphans
from harness.program import Given, main
from peers.compared import lines_of_code
from peers.comparison import Workload, compare

sys.path += [str(Path(__file__).parents[1] / "examples" / "tutorial"), str(Path(__file__).parent / "apps")]
SIZES = ("qserve", "ray", "bentoml")
COLUMNS = (
    "system", "version", "first answer, s", "memory, MB", "p50 ms, alone", "requests/s, 16 in flight",
    "requests/s, 64 in flight", "p99 ms, 64 in flight", "failed", "lines of code",
)  # fmt: skip


def measure(given: Given) -> Iterator[Figure]:
    """Post one image again and again."""
    from digits_models import TRAINED_ON, sample

    adopt_orphans()
    png, _ = sample(TRAINED_ON)
    workload = Workload("digits", lambda answer: _digit(answer) is not None, body=png, content_type="image/png")
    rows = []
    for one in compare(workload, given.sizes, given.seconds):
        (module, _, _) = one.system.targets["digits"].partition(":")
        rows.append((
            one.system.label, one.note, one.ready_s, one.memory_mb, one.load(1, "p50_ms"), one.load(16, "rate"),
            one.load(64, "rate"), one.load(64, "p99_ms"), one.failed, lines_of_code(module),
        ))  # fmt: skip
    figure = Figure(
        "pipeline", "A real pipeline: image, two models in batches, one judgement", COLUMNS, rows,
        (Panel("requests/s", COLUMNS[6:7]), Panel("ms, alone", COLUMNS[4:5]), Panel("MB", COLUMNS[3:4])), "", bars=True,
    )  # fmt: skip
    rates = figure.column(COLUMNS[6])
    others = [(row[0], rate) for row, rate in zip(rows[1:], rates[1:], strict=True) if rate == rate]
    parts = [f"{rates[0] / rate:.1f} times that of {name}" for name, rate in others]
    yield figure.saying(f"The throughput of {rows[0][0]} is {' and '.join(parts)}, in {rows[0][9]} lines of code.")


def _digit(answer: bytes) -> int | None:
    try:
        return int(json.loads(answer)["digit"])
    except (ValueError, TypeError, KeyError):
        return None


if __name__ == "__main__":
    main(measure, __doc__, SIZES, SIZES)
