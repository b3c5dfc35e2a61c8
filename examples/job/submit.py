"""Hand in a job, print its progress, and wait until a webhook brings the result."""

import base64
import hmac
import json
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import Request, urlopen

GATEWAY = "http://127.0.0.1:8000"
SECRET = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")  # the gateway has it too; in reality: from a secret store
LONGEST_WAY_S = 300


def is_genuine(headers: Message, body: bytes) -> bool:
    """Return whether who sent this knows our secret, and sent it a moment ago."""
    sent_at = headers["webhook-timestamp"]
    signed = f"{headers['webhook-id']}.{sent_at}.".encode() + body
    signature = "v1," + base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
    if abs(time.time() - int(sent_at)) > LONGEST_WAY_S:
        return False
    return any(hmac.compare_digest(signature, one) for one in headers["webhook-signature"].split())


class Receiver(BaseHTTPRequestHandler):
    """Takes webhooks, and answers 401 to one that is not from our gateway."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        accepted = is_genuine(self.headers, body)
        self.send_response(204 if accepted else 401)
        self.end_headers()
        if accepted:
            event = json.loads(body)
            print(f"{event['type']}: {event['data']['result']}")
            print(f"accepted if one byte were different: {is_genuine(self.headers, body + b' ')}")

    def log_message(self, format: str, *args: object) -> None:
        """Print no line for each request."""


receiver = HTTPServer(("127.0.0.1", 0), Receiver)
headers = {"Prefer": "respond-async", "X-Qserve-Webhook": f"http://127.0.0.1:{receiver.server_port}/done"}
with urlopen(Request(f"{GATEWAY}/?minutes=4", b"", headers), timeout=30) as response:
    print(f"{response.status}: the job is accepted")
    place = response.headers["location"]

with urlopen(f"{GATEWAY}{place}/events", timeout=60) as events:
    name = ""
    for line in events:
        word, _, value = line.decode().strip().partition(": ")
        name = value if word == "event" else name
        if word == "data" and name == "progress":
            progress = json.loads(value)
            print(f"{progress['fraction']:.0%} {progress['message']}")

receiver.handle_request()
