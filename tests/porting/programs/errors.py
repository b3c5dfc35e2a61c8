"""Errors are caught by the names of both modules."""

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException


@serve.deployment
class Picky:
    async def __call__(self, value: int) -> int:
        if value < 0:
            raise ValueError("below zero")
        return value


app = Picky.bind()


def main():
    handle = serve.run(app)
    found = []
    for value in (1, -1):
        try:
            found.append(ray.get(handle.remote(value), timeout=10))
        except RayTaskError as error:
            found.append(isinstance(error, ValueError))
        except (GetTimeoutError, TaskCancelledError, BackPressureError, RayServeException):
            found.append(None)
    ray.cancel(handle.remote(3))
    return found, ray.exceptions.RayError.__name__

# main() returns ([1, True], 'QserveException')
