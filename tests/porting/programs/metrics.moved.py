"""Counters of a deployment, by both import paths."""

import qserve.metrics as sm
import qserve as serve
from qserve import metrics
from qserve.metrics import Histogram


@serve.deployment
class Counted:
    def __init__(self):
        self.calls = metrics.Counter("calls", description="Calls.", tag_keys=("kind",))
        self.size = sm.Gauge("size")
        self.time = Histogram("time", boundaries=[1, 10])

    def __call__(self, text: str) -> int:
        self.calls.inc(tags={"kind": "text"})
        self.size.set(len(text))
        self.time.observe(0.5)
        return len(text)


app = Counted.bind()


def main():
    return serve.run(app).remote("four").result()

# main() returns 4
