"""A WebSocket: its client says names, one after another, and each is greeted by another deployment.

qserve run chat:chat            # in this folder; Ctrl-C stops it
pip install websockets
python chat_client.py           # in a second terminal: Hello Dora, Hello Finn
"""

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

import qserve
from qserve.handle import DeploymentHandle

web = FastAPI()


@qserve.deployment
class Greeter:
    """Greet in English."""

    def greet(self, name: str) -> str:
        return f"Hello {name}"


@qserve.deployment(max_ongoing_requests=100)
@qserve.ingress(web)
class Chat:
    """Hold up to a hundred sessions; each stays on this replica as long as its client does."""

    def __init__(self, greeter: DeploymentHandle) -> None:
        self.greeter = greeter

    @web.websocket("/chat")
    async def chat(self, websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                name = await websocket.receive_text()
                await websocket.send_text(await self.greeter.greet.remote(name))
        except WebSocketDisconnect:
            pass  # the client has left


chat = Chat.bind(Greeter.bind())
