"""Reads handwritten digits: two models judge each image, and their judgements are combined."""

from typing import TypedDict

import numpy as np
import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from starlette.exceptions import HTTPException
from starlette.requests import Request

from models import Classifier, Numbers, pixels_of


class Reading(TypedDict):
    digit: int
    certainty: float


@qserve.deployment
def prepare(png: bytes) -> Numbers:
    """Return the pixels of an image."""
    try:
        return pixels_of(png)
    except OSError as error:
        raise HTTPException(422, "the body is not an image") from error


@qserve.deployment
class Model:
    """Judges images: how likely each of the ten digits is."""

    def __init__(self, kind: str) -> None:
        self.classifier = Classifier(kind)

    @qserve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def judge(self, images: list[Numbers]) -> list[Numbers]:
        return self.classifier.probabilities(images)


@qserve.deployment
def combine(*judgements: Numbers) -> Reading:
    """Return the digit on which the models agree most."""
    likely = np.mean(judgements, axis=0)
    return {"digit": int(likely.argmax()), "certainty": round(float(likely.max()), 2)}


async def body(request: Request) -> bytes:
    return await request.body()


forest = Model.options(name="forest", num_replicas=2).bind("forest")
linear = Model.options(name="linear").bind("linear")
with InputNode() as png:
    pixels = prepare.bind(png)
    reading = combine.bind(forest.judge.bind(pixels), linear.judge.bind(pixels))
app = DAGDriver.bind(reading, http_adapter=body)
