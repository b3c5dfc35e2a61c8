from typing import Generator

from ray import serve
from ray.serve.handle import DeploymentResponseGenerator as Stream
from starlette.requests import Request
from starlette.responses import StreamingResponse


@serve.deployment
class Countdown:
    def steps(self, start: int) -> Generator[int, None, None]:
        while start:
            yield start
            start -= 1

    def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse((f"{step}\n" for step in self.steps(3)), media_type="text/plain")


app = Countdown.bind()


def main():
    handle = serve.run(app)
    stream: Stream = handle.options(stream=True).steps.remote(4)
    return list(stream)

# main() returns [4, 3, 2, 1]
