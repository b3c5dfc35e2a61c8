"""The Dockerfile of an application: one image for the gateway, and one with the user's code."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from qserve.exceptions import UsageProblem
from qserve.stacks.plan import Plan

OWN_FOLDER = ".qserve"
"""Has qserve's own code for the image, where it was not installed from an index."""
CONSTRAINTS = "qserve-constraints.txt"
"""Has the versions of the libraries that qserve requires."""
_REQUIREMENTS, _PROJECT = "requirements.txt", "pyproject.toml"
_OTHERS = ("-r", "--requirement", "-c", "--constraint")
_FOLDERS = ("-e", "--editable", ".", "/", "file:")
_NO_ISOLATION = "pip --python /opt/qserve/bin/python install --no-cache-dir --disable-pip-version-check"
IGNORED = """\
# Written by qserve: what must not get into the images.
.git
.venv
venv
.env
secrets
**/__pycache__
**/*.pyc
"""


@dataclass(frozen=True)
class Image:
    """How the images are made.

    Parameters:
      python: The version of Python.
      qserve: What pip installs as qserve; a name that begins with ``.`` is a folder or file of the context.
      files: Those that are copied before pip runs; empty to copy all of them.
      install: The arguments of ``pip install``; empty when there is nothing to install.
    """

    python: str
    qserve: str
    files: tuple[str, ...] = ()
    install: str = ""


def requirements_of(folder: Path) -> tuple[tuple[str, ...], str]:
    """Return the files that say what an application needs, and the arguments of ``pip install``.

    No files stand for the whole folder, which is needed when pip installs something from it.

    Raises:
      UsageProblem: A file cannot be read.
    """
    if (folder / _REQUIREMENTS).is_file():
        files: list[str] = []
        needs_all = _reads(folder, _REQUIREMENTS, files)
        return (() if needs_all else tuple(files)), f"-r {_REQUIREMENTS}"
    if (folder / _PROJECT).is_file():
        try:
            project = tomllib.loads(_text(folder, _PROJECT)).get("project")
        except tomllib.TOMLDecodeError as error:
            raise UsageProblem(f"{_PROJECT} cannot be read: {error}") from error
        if project is None or "dependencies" in project.get("dynamic", ()):
            return (), "."
        return ((_PROJECT,), "-r needed.txt") if project.get("dependencies") else ((), "")
    return (), ""


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{name} cannot be read: {error}") from error


def _reads(folder: Path, name: str, files: list[str]) -> bool:
    """Add a file of requirements and those that it includes; return whether it installs something from a folder."""
    files.append(name)
    needs_all = False
    for line in _text(folder, name).splitlines():
        word, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if word in _OTHERS and "://" not in rest:
            other = (Path(name).parent / rest.strip()).as_posix()
            needs_all |= other not in files and _reads(folder, other, files)
        else:
            needs_all |= word.startswith(_FOLDERS)
    return needs_all


def constraints(plan: Plan) -> str:
    """Return the text of the file of constraints: the versions that this version of qserve was tested with."""
    pins = (Path(__file__).parent / "constraints.txt").read_text().partition("\n")[2]
    return f"# Written by `{plan.written_by}`: what the images have of the libraries that qserve requires.\n{pins}"


def dockerfile(plan: Plan, image: Image) -> str:
    """Return the text of the Dockerfile, with the targets ``gateway`` and ``worker``."""
    own = image.qserve.startswith(".")
    copy_qserve = f"COPY {image.qserve} /src/qserve/\n" if own else ""
    file = image.qserve.removeprefix(f"./{OWN_FOLDER}").lstrip("/")
    what = f"/src/qserve/{file}" if own else image.qserve
    return f"""\
# Written by `{plan.written_by}`, which writes it anew: remove this line to keep changes of your own.
# Two images: the gateway, which has none of your code, and the worker, which has it in /app.

FROM python:{image.python}-slim AS qserve
# without pip, so that the images contain nothing that can install packages
RUN python -m venv --without-pip /opt/qserve
# always the same versions of what qserve requires
COPY {CONSTRAINTS} /src/
{copy_qserve}RUN {_NO_ISOLATION} -c /src/{CONSTRAINTS} {what}

FROM qserve AS packages
# packages of Debian that yours need belong here, and into the image `base` if they need them when they run:
# RUN apt-get update && apt-get install -y --no-install-recommends NAME && rm -rf /var/lib/apt/lists/*
{_install(image)}
FROM python:{image.python}-slim AS base
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin qserve
# HOME is a folder that libraries can write their caches to, even under a read-only root
ENV PATH=/opt/qserve/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
ENTRYPOINT ["qserve"]

FROM base AS gateway
COPY --from=qserve /opt/qserve /opt/qserve
USER 10001:10001
EXPOSE 8000
CMD ["gateway", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
COPY --from=packages /opt/qserve /opt/qserve
# Workers run a version only if they have its code. Without a name for it, the modules are compared: name it if a
# release may differ in data files alone (docker build --build-arg QSERVE_CODE_VERSION=...).
ARG QSERVE_CODE_VERSION=
ENV QSERVE_CODE_VERSION=$QSERVE_CODE_VERSION
WORKDIR /app
COPY . /app/
USER 10001:10001
CMD ["worker"]
"""


def _install(image: Image) -> str:
    if not image.install:
        return "# no requirements.txt and no dependencies in pyproject.toml: the code needs nothing but qserve\n"
    if not image.files:
        return f"WORKDIR /src/app\nCOPY . ./\nRUN {_NO_ISOLATION} {image.install}\n"
    copies = "".join(f"COPY {json.dumps([name, f'./{name}'])}\n" for name in image.files)
    read = ""
    if image.files == (_PROJECT,):
        script = (
            "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\\n')"
        )
        read = f'RUN python -c "{script}" > needed.txt\n'
    return f"WORKDIR /src/app\n{copies}{read}RUN {_NO_ISOLATION} {image.install}\n"
