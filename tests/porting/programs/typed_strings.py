"""Annotations as text, imports for type checkers only, and names that are exported."""

from typing import TYPE_CHECKING, Dict, List, Literal, Optional, TypeVar, cast

from ray import serve

if TYPE_CHECKING:
    import ray
    from ray.serve.handle import DeploymentHandle, RayServeDeploymentHandle

__all__ = ["Router", "app", "serve"]
H = TypeVar("H", bound="DeploymentHandle")
Kind = Literal["ray.serve", "other"]


@serve.deployment
def leaf(value: int) -> int:
    return value + 1


@serve.deployment
class Router:
    def __init__(self, handles: "Dict[str, List[DeploymentHandle]]") -> None:
        self.handles = handles
        self.last: "Optional[ray.ObjectRef]" = None

    def first(self) -> "serve.handle.DeploymentHandle":
        return cast("RayServeDeploymentHandle", self.handles["leaf"][0])

    async def __call__(self, value: int) -> int:
        ref = await self.first().remote(value)
        return await ref


app = Router.bind({"leaf": [leaf.bind()]})


def main():
    handle = serve.run(app)
    return handle.remote(1).result()

# main() returns 2
