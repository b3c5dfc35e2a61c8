"""Four replicas share one model of scikit-learn, which is loaded once."""

import os
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

LEARNED_FROM = 1500
"""How many of the 1,797 images the model has seen; the others are for trying it."""


def load() -> tuple[RandomForestClassifier, int]:
    """Return the model, and the process that this runs in: once on each host, before the replicas are forked."""
    digits: Any = load_digits()
    model = RandomForestClassifier(100, random_state=0)  # in reality: read it from a file
    return model.fit(digits.data[:LEARNED_FROM], digits.target[:LEARNED_FROM]), os.getpid()


@qserve.deployment(preload=load, num_replicas=4)
class Digits:
    """Reads an image of a digit, which has 64 shades of grey."""

    def __init__(self) -> None:
        self.model, self.loaded_by = qserve.get_replica_context().preloaded

    def read(self, pixels: list[float]) -> dict[str, int]:
        (digit,) = self.model.predict(np.array([pixels]))
        return {"digit": int(digit), "replica": os.getpid(), "loaded_by": self.loaded_by}


with InputNode() as pixels:
    app = DAGDriver.bind(Digits.bind().read.bind(pixels), http_adapter=json_request)
