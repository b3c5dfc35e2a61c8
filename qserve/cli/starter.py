"""The files that ``qserve init`` writes."""

from __future__ import annotations

from qserve import __version__

TARGET = "hello:app"

_HELLO = '''\
"""Two greeters get each request at the same time, and a third step puts their greetings together."""

from pydantic import BaseModel

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver


class Visitor(BaseModel):
    """The body of a request: a JSON object with a name."""

    name: str


@qserve.deployment
class Greeter:
    """Greets; the constructor runs once in each process, so it is the place to load a model."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def greet(self, visitor: Visitor) -> str:
        return f"{self.greeting} {visitor.name}"


@qserve.deployment
def both(first: str, second: str) -> list[str]:
    """Put two greetings together."""
    return [first, second]


spanish, french = Greeter.bind("Hola"), Greeter.bind("Bonjour")
with InputNode() as visitor:
    greetings = both.bind(spanish.greet.bind(visitor), french.greet.bind(visitor))

app = DAGDriver.bind(greetings, http_adapter=Visitor)
'''

_TEST = '''\
"""Runs the graph in the test itself, without a broker and other processes."""

import qserve
from hello import Visitor, app


def test_a_visitor_is_greeted_in_both_languages() -> None:
    handle = qserve.run(app, local=True)

    assert handle.predict.remote(Visitor(name="Dora")).result() == ["Hola Dora", "Bonjour Dora"]
'''

_PROJECT = """\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "{project}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["qserve-celery>={version}"]

[project.optional-dependencies]
dev = ["mypy", "pytest"]

[tool.setuptools]
py-modules = ["hello"]

[tool.mypy]
files = ["*.py"]
plugins = ["qserve.mypy_plugin"]
strict = true

[tool.pyright]
typeCheckingMode = "strict"
"""

_README = """\
# {project}

```
pip install -e '.[dev]'          # once, in a virtual environment
pytest                           # runs the graph inside the test
mypy                             # checks the types
qserve run {target} --reload    # serves hello.py, and deploys it again when you edit it
curl http://127.0.0.1:8000/ -d '{{"name": "Dora"}}'
```
"""

_IGNORED = """\
.venv/
__pycache__/
.mypy_cache/
.pytest_cache/
*.egg-info/
"""


def starter(project: str) -> dict[str, str]:
    """Return the files of a new application, with their names."""
    return {
        "hello.py": _HELLO,
        "test_hello.py": _TEST,
        "pyproject.toml": _PROJECT.format(project=project, version=__version__),
        "README.md": _README.format(project=project, target=TARGET),
        ".gitignore": _IGNORED,
    }
