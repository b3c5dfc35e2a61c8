"""Three nodes of one class, each with its own constructor argument.

Serve one of them from the command line, in this folder:

    qserve run echo:foo_node        # or echo:bar_node, echo:baz_node
    python echo_client.py           # foo

Or serve all three from Python, one after the other; each replaces the one before:

    python echo.py                  # foo, bar, baz
"""

import os
import urllib.request

from starlette.requests import Request

import qserve


@qserve.deployment
class EchoClass:
    """Answer every request with the text that was bound to the constructor."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, request: Request) -> str:
        return self.text


foo_node = EchoClass.bind("foo")
bar_node = EchoClass.bind("bar")
baz_node = EchoClass.bind("baz")

if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    for node in (foo_node, bar_node, baz_node):
        qserve.run(node, port=port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
            print(response.read().decode())
