"""Build the distributions of the last commit into `dist/`, the same bytes each time, and check them: `make dist`.

`qserve-celery` is what setup.cfg says. `qserve-celery-slim` has the same files and requires less: what the extras of
`PARTS` name is required by these extras only, with the bounds that setup.cfg has once, among the requirements.
"""

from __future__ import annotations

import configparser
import gzip
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from io import BytesIO, StringIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
FULL, SLIM = "qserve-celery", "qserve-celery-slim"
PARTS = ("gateway", "broker", "fastapi", "reload")
"""The extras of what a client and a worker need not have."""
_PACKAGES = ("qserve", "workers/qserve_workers", "gateway/qserve_gateway")
_DESCRIBES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO")


def main() -> None:
    changed = _git("status", "--porcelain")
    if changed:
        sys.exit(f"make dist builds what is committed, and this is not:\n{changed}")
    to = ROOT / "dist"
    to.mkdir(exist_ok=True)
    for name in (FULL, SLIM):
        files = build(name, to)
        subprocess.run([sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files], check=True)
        for file in files:
            if wrong := differences(file):
                sys.exit("\n".join([f"{file.name} is not what is committed:", *wrong]))


def build(name: str, to: Path) -> list[Path]:
    """Build the sdist of a distribution, and its wheel from that; return both.

    The tools are those of the extra `release`, with fixed versions, because the bytes depend on them.
    """
    epoch = int(_git("log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as temporary:
        tree, made = Path(temporary, "tree"), Path(temporary, "made")
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as opened:
            opened.extractall(tree, filter="data")
        if name == SLIM:
            (tree / "setup.cfg").write_text(slim((tree / "setup.cfg").read_text()))
        done = subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", made, tree],
            check=False,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)},
            umask=0o022,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stdout)
        return [_packed(file, to, epoch) for file in sorted(made.iterdir())]


def slim(text: str) -> str:
    """Return the setup.cfg of the slim distribution for that of the full one."""
    config = configparser.RawConfigParser()
    config.read_string(text)
    extras, required = config["options.extras_require"], config["options"]["install_requires"].split()
    needs = {re.split("[<>=]", line)[0]: line for line in required}
    parts = {part: [needs.pop(name) for name in extras[part].split()] for part in PARTS}
    parts["all"] = [line for lines in parts.values() for line in lines]
    extras.update({part: "\n".join(["", *lines]) for part, lines in parts.items()})
    config["options"]["install_requires"] = "\n".join(["", *needs.values()])
    config["metadata"]["name"] = SLIM
    written = StringIO()
    config.write(written)
    return written.getvalue()


def differences(file: Path) -> list[str]:
    """Return in which files a distribution differs from the packages as they are committed."""
    is_wheel = file.suffix == ".whl"
    expected = set()
    for package in _PACKAGES:
        for name in _git("ls-tree", "-r", "--name-only", "HEAD", f"{package}/").splitlines():
            expected.add(name.removeprefix(f"{package.rpartition('/')[0]}/") if is_wheel else name)
    if is_wheel:
        with zipfile.ZipFile(file) as wheel:
            found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    else:
        with tarfile.open(file) as sdist:
            names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
        found = {name for name in names if name not in _DESCRIBES and ".egg-info/" not in name}
    return sorted([f"without {name}" for name in expected - found] + [f"with {name}" for name in found - expected])


def _packed(file: Path, to: Path, epoch: int) -> Path:
    """Copy a distribution to its folder, an sdist without what says when and by whom it was packed."""
    packed = to / file.name
    if file.suffix == ".whl":
        packed.write_bytes(file.read_bytes())
        return packed
    with (
        tarfile.open(file) as old,
        packed.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mode = 0o755 if member.isdir() else 0o644
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime, member.pax_headers = epoch, {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return packed


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.rstrip()


if __name__ == "__main__":
    main()
