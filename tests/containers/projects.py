"""The two applications whose stacks are tried: the committed example, and one whose stack is generated."""

from __future__ import annotations

import re
import secrets
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import ROOT, Engine, Stack, run

TAG = "stack-test"

_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.S | re.M)


def blocks(page: str, heading: str = "") -> list[str]:
    """Return the code blocks of a page in docs/deploy, or of one of its sections."""
    text = (ROOT / "docs" / "deploy" / f"{page}.md").read_text()
    return _BLOCK.findall(text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] if heading else text)


@dataclass
class Committed:
    """docker-compose.yml of the repository, with images from a checkout."""

    engine: Engine
    port: int
    name: str = "committed"
    step: str = "spanish"
    services: tuple[str, ...] = ("spanish", "french", "classifier")
    deployment: str = "SpanishResponder"
    greetings: tuple[str, str] = ("Hola", "Buenas")

    def __post_init__(self) -> None:
        keys = {"QSERVE_BROKER_PASSWORD": secrets.token_hex(16), "QSERVE_SECRET_KEY": secrets.token_hex(32)}
        self.stack = Stack(self.engine, ROOT, self.services, {"QSERVE_PORT": str(self.port), "QSERVE_TAG": TAG, **keys})

    def body(self, name: str) -> dict[str, Any]:
        return {"language": "spanish", "name": name}

    def answers(self, name: str) -> tuple[str, str]:
        """Return what the first version answers, and what the second one does."""
        first, second = self.greetings
        return f"{first} {name}", f"{second} {name}"

    def start(self) -> str:
        """Both images build, and the stack starts."""
        for folder, image in (("gateway", "qserve-gateway"), ("workers", "qserve-worker")):
            self.engine.build(ROOT, f"{folder}/Dockerfile", f"{image}:{TAG}")
        self.stack.compose("up", "-d", "--no-build")
        return f"qserve-worker:{TAG}, qserve-gateway:{TAG}"

    def change(self) -> None:
        """Build the worker's image with changed code."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            text = (ROOT / "examples" / "hello.py").read_text()
            (folder / "hello.py").write_text(text.replace(*self.greetings))
            (folder / "Dockerfile").write_text(f"FROM qserve-worker:{TAG}\nCOPY hello.py /app/hello.py\n")
            self.engine.build(folder, "Dockerfile", f"qserve-worker:{TAG}")

    def roll_out(self) -> None:
        """Start new workers beside the old ones, deploy, and stop the old ones."""
        before = [one for service in self.services for one in self.stack.containers(service)]
        for service in self.services:
            count = f"{service}={2 * len(self.stack.containers(service))}"
            self.stack.compose("up", "-d", "--no-build", "--no-deps", "--no-recreate", "--scale", count, service)
        self.stack.compose("run", "--rm", "--no-deps", "deploy")
        self.engine("stop", "-t", "30", *before)
        self.engine("rm", "-f", *before)

    def remove(self) -> None:
        """Nothing but the images is left of it."""


@dataclass
class Generated:
    """The program of docs/deploy/compose.md with a requirements file; two commands make a stack of it."""

    engine: Engine
    port: int
    name: str = "generated"
    step: str = "model"
    services: tuple[str, ...] = ("model", "front")
    deployment: str = "Model"
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="shop-")))

    def __post_init__(self) -> None:
        self.stack = Stack(self.engine, self.folder, self.services, {"QSERVE_PORT": str(self.port), "QSERVE_TAG": TAG})

    def body(self, name: str) -> dict[str, Any]:
        return {"name": name}

    def answers(self, name: str) -> tuple[str, str]:
        """Return what the first version answers, and what the second one does."""
        return f"1 {name} \U0001f44d", f"2 {name} \U0001f44d"

    def start(self) -> str:
        """Two commands make a running stack of a folder of code."""
        (self.folder / "shop.py").write_text(next(text for text in blocks("compose") if text.startswith("# shop.py")))
        (self.folder / "version.py").write_text("VERSION = 1\n")
        (self.folder / "requirements.txt").write_text("emoji\n")
        run(sys.executable, "-m", "pip", "install", "-q", "emoji", env=self.engine.env)  # where the command is run, too
        first, second = blocks("compose", "Start it")[0].splitlines()
        self.stack.shell(first)
        if self.engine.is_podman:  # its compose builds all images at once, and the stages that they share each time
            for target in ("gateway", "worker"):
                self.engine.build(self.folder, "Dockerfile", f"shop-{target}:{TAG}", target)
        self.stack.shell(second, timeout_s=600)
        return f"{first} && {second}"

    def change(self) -> None:
        """Change the code; the stack's files are those of before."""
        (self.folder / "version.py").write_text("VERSION = 2\n")
        (check,) = blocks("compose", "Keep it up to date in CI")
        self.stack.shell(check)

    def roll_out(self) -> None:
        """Type what the page says."""
        (commands,) = blocks("upgrades", "A new image")
        self.stack.shell(commands, timeout_s=600)

    def remove(self) -> None:
        """Nothing but the images is left of it."""
        run("rm", "-rf", str(self.folder), env=self.engine.env)


Project = Committed | Generated
