"""The pipeline of digits_qserve.py on BentoML."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import bentoml  # type: ignore[import-not-found]
import numpy as np
from bentoml.validators import ContentType  # type: ignore[import-not-found]
from digits_models import pixels_of, trained

QUIET = {"access": {"enabled": False}}  # as on the other systems, no line for each request


@bentoml.service(logging=QUIET)
class Prepare:
    @bentoml.api
    def pixels(self, png: bytes) -> np.ndarray:
        return pixels_of(png)


@bentoml.service(logging=QUIET)
class Forest:
    def __init__(self) -> None:
        self.model = trained("forest")

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def judge(self, images: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(images)


@bentoml.service(logging=QUIET)
class Linear:
    def __init__(self) -> None:
        self.model = trained("linear")

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def judge(self, images: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(images)


@bentoml.service(logging=QUIET)
class Combine:
    @bentoml.api
    def agree(self, judgements: np.ndarray) -> dict[str, float]:
        likely = np.mean(judgements, axis=0)
        return {"digit": int(likely.argmax()), "certainty": round(float(likely.max()), 3)}


@bentoml.service(logging=QUIET)
class Digits:
    prepare = bentoml.depends(Prepare)
    forest = bentoml.depends(Forest)
    linear = bentoml.depends(Linear)
    combine = bentoml.depends(Combine)

    @bentoml.api(route="/")
    async def run(self, image: Annotated[Path, ContentType("image/png")], /) -> dict[str, float]:
        pixels = (await self.prepare.to_async.pixels(image.read_bytes()))[np.newaxis]
        judgements = await asyncio.gather(*(model.to_async.judge(pixels) for model in (self.forest, self.linear)))
        return await self.combine.to_async.agree(np.concatenate(judgements))
