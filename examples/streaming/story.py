"""A stand-in for a language model, whose words reach the client as they come: as text, or as server-sent events."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import qserve
from qserve.handle import DeploymentHandle

web = FastAPI()


@qserve.deployment
class Writer:
    """Writes word by word; scale it apart from what speaks HTTP."""

    async def write(self, hero: str) -> AsyncIterator[str]:
        for word in re.findall(r"\S+\s*", f"Once upon a time a {hero} learned to wait for nothing."):
            await asyncio.sleep(0.1)
            yield word


@qserve.deployment(max_ongoing_requests=100)
@qserve.ingress(web)
class Stories:
    """Passes the words on to up to a hundred clients at a time."""

    def __init__(self, writer: DeploymentHandle) -> None:
        self.writer = writer.options(stream=True)

    @web.get("/text")
    async def text(self, hero: str) -> StreamingResponse:
        """Send each word as a chunk of the body."""
        return StreamingResponse(self.writer.write.remote(hero), media_type="text/plain")

    @web.get("/events")
    async def events(self, hero: str) -> StreamingResponse:
        """Send each word as an event, and then `[DONE]`, as APIs of language models do."""

        async def lines() -> AsyncIterator[str]:
            async for word in self.writer.write.remote(hero):
                yield f"data: {json.dumps({'token': word})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")


app = Stories.bind(Writer.bind())
