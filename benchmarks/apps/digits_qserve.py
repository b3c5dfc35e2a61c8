"""Read handwritten digits: an image is prepared, two models judge it in batches, and their judgements are combined."""

from typing import Any

import numpy as np
from digits_models import pixels_of, trained

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver


@qserve.deployment
async def prepare(request: Any) -> np.ndarray:
    """Return the pixels of the PNG in the body of the request."""
    return pixels_of(await request.body())


@qserve.deployment
class Model:
    """Judges images: how likely each of the ten digits is."""

    def __init__(self, kind: str) -> None:
        self.model = trained(kind)

    @qserve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def judge(self, images: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.model.predict_proba(np.stack(images)))


@qserve.deployment
def combine(*judgements: np.ndarray) -> dict[str, float]:
    """Return the digit on which the models agree most."""
    likely = np.mean(judgements, axis=0)
    return {"digit": int(likely.argmax()), "certainty": round(float(likely.max()), 3)}


models = [Model.options(name=kind).bind(kind) for kind in ("forest", "linear")]
with InputNode() as request:
    pixels = prepare.bind(request)
    output = combine.bind(*(model.judge.bind(pixels) for model in models))
app = DAGDriver.bind(output)
