"""Errors are caught by the names of both modules."""

import qserve.exceptions
import qserve as serve
from qserve.exceptions import GetTimeoutError, RayTaskError, RequestCancelledError
from qserve.exceptions import BackPressureError, RayServeException


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
            found.append(qserve.get(handle.remote(value), timeout=10))
        except RayTaskError as error:
            found.append(isinstance(error, ValueError))
        except (GetTimeoutError, RequestCancelledError, BackPressureError, RayServeException):
            found.append(None)
    qserve.cancel(handle.remote(3))
    return found, qserve.exceptions.QserveException.__name__

# main() returns ([1, True], 'QserveException')
