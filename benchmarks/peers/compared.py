"""The systems that are compared, and how each serves a workload over HTTP."""

from __future__ import annotations

import json
import os
import sys
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.processes import Place, free_port, wait_until

import qserve
from peers.environments import environment, version
from qserve.broker.connection import connect
from qserve.machine.embedded_broker import find_server

HERE = Path(__file__).resolve().parent
FOLDERS = (HERE / "apps", HERE.parent / "apps", HERE.parents[1] / "examples" / "tutorial")
# Ray listens on the address of the network by default, even with 127.0.0.1 in its settings
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
BENTOML = {"BENTOML_DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class System:
    """A way to serve.

    Parameters:
      label: Its name in tables.
      peer: The name of its environment and its package; "" for qserve, which runs in that of the benchmark.
      start: Starts it for a workload's target in a place and on a port, with the programs of its environment.
      targets: By workload, what is served; a workload that is missing cannot be.
      path: Where it is served, with the workload as ``{}``.
      body: Turns a number into the body of a request.
    """

    label: str
    peer: str
    start: Callable[[Place, Path, str, int], None]
    targets: Mapping[str, str]
    path: str = "/"
    body: Callable[[int], bytes] = lambda number: json.dumps(number).encode()

    def prepare(self) -> tuple[Path, str]:
        """Install it; return the folder of its programs, and its version.

        Raises:
          Unavailable: It cannot be installed.
        """
        if not self.peer:
            return Path(sys.executable).parent, qserve.__version__
        home = environment(self.peer)
        return home, version(home, self.peer)


def _qserve(place: Place, programs: Path, target: str, port: int) -> None:
    place.start([sys.executable, "-m", "qserve", "run", target, "--port", str(port)])


def _ray(place: Place, programs: Path, target: str, port: int) -> None:
    env = RAY | {"RAY_AUTH_TOKEN": os.urandom(32).hex()}
    if target != "compared_ray:array":  # its own advice for throughput, with which a request for an array is a 500
        env["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    place.start([str(programs / "python"), "ray_main.py", target, "start", str(port), "address"], **env)


def _bentoml(place: Place, programs: Path, target: str, port: int) -> None:
    env = BENTOML | {"PATH": f"{programs}:{os.environ['PATH']}"}
    place.start([str(programs / "bentoml"), "serve", target, "-p", str(port), "--host", "127.0.0.1"], **env)


def _litserve(place: Place, programs: Path, target: str, port: int) -> None:
    place.start([str(programs / "python"), target, str(port)])


def _celery(place: Place, programs: Path, target: str, port: int) -> None:
    broker_port = free_port()
    url = f"redis://127.0.0.1:{broker_port}/0"
    place.start([find_server(), "--port", str(broker_port), "--bind", "127.0.0.1", "--save", ""])
    wait_until(lambda: _replies(url), "the broker replies", 10.0)
    worker = [str(programs / "celery"), "-A", "compared_celery:celery", "worker", "-P", "solo", "-l", "error"]
    worker += ["--without-gossip", "--without-mingle"]
    for queue in target:
        place.start([*worker, "-Q", queue, "-n", f"{queue}@benchmark"], BENCHMARK_BROKER=url)
    gunicorn = [str(programs / "gunicorn"), "-k", "gthread", "-w", "1", "--threads", "64", "--log-level", "error"]
    place.start([*gunicorn, "-b", f"127.0.0.1:{port}", "compared_celery:app"], BENCHMARK_BROKER=url)


def _replies(url: str) -> bool:
    try:
        with connect(url) as client:
            return bool(client.ping())
    except Exception:
        return False


def _named(number: int) -> bytes:
    return json.dumps({"x": number}).encode()


def _targets(pattern: str, **names: str) -> dict[str, str]:
    return {workload: pattern.format(name) for workload, name in names.items()}


SYSTEMS = {
    "qserve": System(
        "qserve", "", _qserve,
        _targets("compared_qserve:{}", chain="chain", single="single", array="array") | {"digits": "digits_qserve:app"},
    ),
    "ray": System(
        "Ray Serve", "ray", _ray,
        _targets("compared_ray:{}", chain="chain", single="single", array="array") | {"digits": "digits_ray:app"},
    ),
    "bentoml": System(
        "BentoML", "bentoml", _bentoml,
        _targets("compared_bentoml:{}", chain="Chain", single="AddTwo", array="Pair")
        | {"digits": "digits_bentoml:Digits"},
        body=_named,
    ),
    "celery": System(
        "Celery by hand", "celery", _celery,
        {"chain": "abc", "single": "a"}, path="/{}",
    ),
    "litserve": System(
        "LitServe", "litserve", _litserve, {"single": "compared_litserve.py"}, body=_named,
    ),
}  # fmt: skip


def lines_of_code(module: str) -> int:
    """Return how many lines of a program hold code: no comments, no docstrings, no empty lines."""
    path = next(folder / f"{module}.py" for folder in FOLDERS if (folder / f"{module}.py").exists())
    lines: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    with path.open() as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.NEWLINE:
                if any(part.type != tokenize.STRING for part in statement):
                    lines.update(line for part in statement for line in range(part.start[0], part.end[0] + 1))
                statement = []
            elif token.type not in _NO_CODE:
                statement.append(token)
    return len(lines)
