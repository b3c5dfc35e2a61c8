"""As many deployments as the variable COUNT says, with one replica each, which nothing calls but the first."""

from __future__ import annotations

import os

import qserve

OPTIONS = {"num_cpus": 0.001}


def named(name: str) -> qserve.Deployment:
    class Model:
        def __call__(self, x: int) -> int:
            return x

    return qserve.deployment(name=name, ray_actor_options=OPTIONS)(Model)


@qserve.deployment(ray_actor_options=OPTIONS)
class Front:
    def __init__(self, *models: object) -> None:
        self.models = models

    async def __call__(self, request: object) -> str:
        return "here"


app = Front.bind(*(named(f"Model{number}").bind() for number in range(int(os.environ["COUNT"]) - 1)))
