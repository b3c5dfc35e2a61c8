"""One deployment calls one of two others, through handles.

qserve run hello:language_classifier      # in this folder; Ctrl-C stops it
python hello_client.py                    # in a second terminal: Hola Dora
"""

from starlette.requests import Request

import qserve
from qserve.handle import RayServeHandle


@qserve.deployment
class SpanishResponder:
    """Greet in Spanish."""

    def greet(self, name: str) -> str:
        return f"Hola {name}"


@qserve.deployment
class FrenchResponder:
    """Greet in French."""

    def greet(self, name: str) -> str:
        return f"Bonjour {name}"


@qserve.deployment
class LanguageClassifier:
    """Read the language from the request, and let the responder for it greet."""

    def __init__(self, spanish: RayServeHandle, french: RayServeHandle) -> None:
        self.responders = {"spanish": spanish, "french": french}

    async def __call__(self, request: Request) -> str:
        body = await request.json()
        responder = self.responders.get(body["language"])
        if responder is None:
            return "Please try again."
        ref = await responder.greet.remote(body["name"])  # start the call
        return await ref  # wait for its result


language_classifier = LanguageClassifier.bind(SpanishResponder.bind(), FrenchResponder.bind())
