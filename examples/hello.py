"""A deployment that asks one of two others, through handles.

qserve run hello:language_classifier      # in this folder; Ctrl-C stops it
python hello_client.py                    # in a second terminal: Hola Dora
"""

from starlette.requests import Request

import qserve
from qserve.handle import RayServeHandle


@qserve.deployment
class SpanishResponder:
    """Greets in Spanish."""

    def greet(self, name: str) -> str:
        return f"Hola {name}"


@qserve.deployment
class FrenchResponder:
    """Greets in French."""

    def greet(self, name: str) -> str:
        return f"Bonjour {name}"


@qserve.deployment
class LanguageClassifier:
    """Reads which language is wanted and leaves the greeting to whoever speaks it."""

    def __init__(self, spanish: RayServeHandle, french: RayServeHandle) -> None:
        self.responders = {"spanish": spanish, "french": french}

    async def __call__(self, request: Request) -> str:
        wish = await request.json()
        responder = self.responders.get(wish["language"])
        if responder is None:
            return "Please try again."
        ref = await responder.greet.remote(wish["name"])  # the call is on its way
        return await ref  # and this is its result


language_classifier = LanguageClassifier.bind(SpanishResponder.bind(), FrenchResponder.bind())
