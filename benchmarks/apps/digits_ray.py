"""The pipeline of digits_qserve.py on Ray Serve."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from digits_models import pixels_of, trained
from ray import serve  # type: ignore[import-not-found]

OPTIONS = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 100}


@serve.deployment(**OPTIONS)
class Prepare:
    def __call__(self, png: bytes) -> np.ndarray:
        return pixels_of(png)


@serve.deployment(**OPTIONS)
class Model:
    def __init__(self, kind: str) -> None:
        self.model = trained(kind)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def judge(self, images: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.model.predict_proba(np.stack(images)))


@serve.deployment(**OPTIONS)
class Combine:
    def __call__(self, *judgements: np.ndarray) -> dict[str, float]:
        likely = np.mean(judgements, axis=0)
        return {"digit": int(likely.argmax()), "certainty": round(float(likely.max()), 3)}


@serve.deployment(**OPTIONS)
class Ingress:
    def __init__(self, prepare: Any, models: list[Any], combine: Any) -> None:
        self.prepare, self.models, self.combine = prepare, models, combine

    async def __call__(self, request: Any) -> dict[str, float]:
        pixels = await self.prepare.remote(await request.body())
        judgements = await asyncio.gather(*(model.judge.remote(pixels) for model in self.models))
        return await self.combine.remote(*judgements)


models = [Model.options(name=kind).bind(kind) for kind in ("forest", "linear")]
app = Ingress.bind(Prepare.bind(), models, Combine.bind())
