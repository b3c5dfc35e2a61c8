"""A job that takes long, and says how far it is."""

import time

from starlette.requests import Request

import qserve


@qserve.deployment(request_timeout_s=600)
class Transcriber:
    """Stands for something slow, such as a model that listens to a recording."""

    def __call__(self, request: Request) -> dict[str, object]:
        minutes = int(request.query_params["minutes"])
        words = []
        for minute in range(minutes):
            qserve.progress(minute / minutes, f"minute {minute + 1} of {minutes}")
            time.sleep(0.5)
            words.append("bla")
        return {"minutes": minutes, "text": " ".join(words)}


app = Transcriber.bind()
