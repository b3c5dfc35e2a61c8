"""A FastAPI application whose routes need an API key, in front of a deployment that needs none."""

import os
import secrets
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Security
from fastapi.security import APIKeyHeader
from pydantic import BaseModel

import qserve
from qserve.handle import DeploymentHandle

KEYS = dict(pair.split(":", 1) for pair in os.environ.get("SUMMARIES_KEYS", "").split(",") if pair)
"""The key of each client. Without any, nobody is let in."""

header = APIKeyHeader(name="X-API-Key", auto_error=False)


def client_of(key: Annotated[str | None, Security(header)]) -> str:
    """Return whose key a request has, or refuse it."""
    for client, known in KEYS.items():
        if key is not None and secrets.compare_digest(key.encode(), known.encode()):
            return client
    raise HTTPException(401, "a valid X-API-Key is needed", {"WWW-Authenticate": "APIKey"})


class Text(BaseModel):
    """What is to be summarised."""

    text: str


class Summary(BaseModel):
    """The summary, and who has asked for it."""

    client: str
    summary: str


@qserve.deployment
class Summarizer:
    """Stands for a model: the first sentence says it all."""

    def summarize(self, text: str) -> str:
        return text.partition(".")[0] + "."


web = FastAPI(title="Summaries", dependencies=[Depends(client_of)])


@qserve.deployment
@qserve.ingress(web)
class Api:
    """Checks keys and bodies; only what passes reaches the model."""

    def __init__(self, summarizer: DeploymentHandle) -> None:
        self.summarizer = summarizer

    @web.post("/summaries")
    async def summarize(self, text: Text, client: Annotated[str, Depends(client_of)]) -> Summary:
        """Summarise a text."""
        return Summary(client=client, summary=await self.summarizer.summarize.remote(text.text))


app = Api.bind(Summarizer.bind())
