"""Talk to chat.py over a WebSocket; set PORT=8001 to use another port than 8000."""

import os

from websockets.sync.client import connect

with connect(f"ws://127.0.0.1:{os.environ.get('PORT', '8000')}/chat") as websocket:
    for name in ("Dora", "Finn"):
        websocket.send(name)
        print(websocket.recv(timeout=10))
