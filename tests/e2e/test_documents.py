"""The documents tell the truth: their programs and commands are run, and whatever they name exists."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import redis
from click.testing import CliRunner
from PIL import Image
from processes import QSERVE, Serving, Site, free_port, is_open, wait_until

from qserve.__main__ import main
from qserve.base.settings import Settings
from qserve.broker.doctor import BrokerFacts, examine
from qserve.machine.embedded_broker import find_server

ROOT = Path(__file__).parents[2]
README, *PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{page}.md" for page in ("index", "guide", "config", "operations", "tracing", "ray-parity")),
)
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
DOCUMENTS += EXAMPLES
SOURCES = ("qserve", "workers", "gateway", "tools", "Makefile", "docker-compose.yml")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
_NAME = re.compile(r"# ([\w-]+\.(?:py|toml|txt|yaml))\n")
"""The first line of a block that the reader saves under this name."""
_RUN = "qserve run "
# carries variables such as `place=$(curl ...)` from one command to the next
_SHELL = "if [ -f .shell ]; then . ./.shell; fi; set -a; {command}\nexport -p > .shell"


def sections(path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each section's heading with its code blocks, as pairs of a language and a text."""
    for part in re.split(r"^## ", path.read_text(), flags=re.M)[1:]:
        yield part.partition("\n")[0], _BLOCK.findall(part)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block with the output that the document shows for it."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        lines = part.splitlines(keepends=True)
        length = next(number for number, line in enumerate(lines, 1) if not line.endswith("\\\n"))
        yield "".join(lines[:length]).strip(), "".join(lines[length:])


def assert_shown(shown: str, printed: str) -> None:
    """Compare an output with a document, where `...` stands for anything and times may differ."""
    pattern = re.escape(shown.strip())
    pattern = re.sub(r"\d+\\\.\d+\\ s\b", r"[\\d.]+ s", pattern.replace(r"\.\.\.", ".*"))
    assert re.fullmatch(pattern, printed.strip(), re.S), f"the document shows:\n{shown}\nprinted was:\n{printed}"


class Reader:
    """Does what a document says: saves its files, and types its commands. Ports and folders are those of the test."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._port = str(free_port())
        shared = str(site.folder / "shared")
        self._places = (("8000", self._port), ("6379", str(free_port())), ("/mnt/shared", shared))
        self._serving: Serving | None = None

    def save(self, folder: Path) -> None:
        """Copy the programs of an example."""
        for path in folder.glob("*.py"):
            self._site.write(path.name, self._here(path.read_text()))

    def _here(self, text: str) -> str:
        for there, here in self._places:
            text = text.replace(there, here)
        return text

    def follow(self, blocks: list[tuple[str, str]]) -> None:
        for language, text in blocks:
            here = self._here(text)
            name = _NAME.match(here)
            if language != "console" and name:
                self._site.write(name[1], here)
            elif language == "console":
                for command, shown in commands(here):
                    self._type(command, shown)

    def _type(self, command: str, shown: str) -> None:
        self._stop_serving(before=command)
        variables, _, options = command.partition(_RUN)
        if options and all("=" in variable for variable in variables.split()):
            env = dict(variable.split("=", 1) for variable in variables.split())
            target, *options = shlex.split(options)
            self._serving = self._site.run(target, *options, port=int(self._port), env=env)
            assert_shown(shown, self._serving.process.stdout)
            return
        bin_folder = Path(QSERVE[0]).parent
        if command.endswith(" &"):
            self._start(shlex.split(command.removesuffix(" &")), bin_folder)
            return
        shell = self._site.start(
            ["bash", "-euc", f"PATH={bin_folder}:$PATH; {_SHELL.format(command=command)}"],
        )
        assert shell.wait(timeout_s=240) == 0, shell.output  # some of them start many processes
        assert_shown(shown, shell.stdout)

    def _start(self, words: list[str], bin_folder: Path) -> None:
        """Start what runs in the background until the end."""
        variables = [*itertools.takewhile(lambda word: "=" in word, words)]
        program, *arguments = words[len(variables) :]
        path = find_server() if program == "redis-server" else str(bin_folder / program)
        self._site.start([path, *arguments], env=dict(word.split("=", 1) for word in variables))

    def _stop_serving(self, before: str) -> None:
        # a program that serves by itself needs the port as well
        if self._serving is not None and (_RUN in before or self._runs_what_serves(before)):
            self._serving.process.stop()
            self._serving = None

    def _runs_what_serves(self, command: str) -> bool:
        program = re.match(r"python (\w+\.py)", command)
        return program is not None and "serve.run(" in (self._site.folder / program[1]).read_text()


_MARKS = {
    "README: Your first service": (),
    "ray-parity: Let `qserve port` do it": (),  # it starts nothing
}
"""Each section starts a system to show what other tests have checked: one of them does that in `make test`."""
PAGES += sorted([*(ROOT / "docs" / "coming-from").glob("*.md"), *(ROOT / "docs" / "how-to").glob("*.md")])
TAUGHT = [
    pytest.param(
        blocks,
        id=f"{path.stem}: {heading}",
        marks=_MARKS.get(f"{path.stem}: {heading}", (pytest.mark.slow, pytest.mark.long)),
    )
    for path in (README, *PAGES)
    for heading, blocks in sections(path)
    if any(language == "console" for language, _ in blocks)
]


@pytest.mark.parametrize("blocks", TAUGHT)
def test_a_section_prints_what_it_shows(site: Site, blocks: list[tuple[str, str]]) -> None:
    Reader(site).follow(blocks)


@pytest.mark.slow
@pytest.mark.long  # what they show is checked in tests/define, tests/e2e and tests/workers, where it is made
@pytest.mark.parametrize("readme", EXAMPLES, ids=lambda readme: readme.parent.name)
def test_an_example_does_what_its_readme_says(site: Site, readme: Path) -> None:
    reader = Reader(site)

    reader.save(readme.parent)
    reader.follow(_BLOCK.findall(readme.read_text()))


TUTORIAL = [ROOT / "docs" / "tutorial" / "index.md", *sorted((ROOT / "docs" / "tutorial").glob("[0-9]*.md"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long  # needs what only `make long` installs; each step of it is checked elsewhere
def test_the_tutorial_can_be_followed_from_an_empty_folder(site: Site) -> None:
    reader = Reader(site)
    for page in TUTORIAL:
        reader.follow(_BLOCK.findall(page.read_text()))

    written, images = site.folder, ROOT / "docs" / "images"
    assert (written / "graph.svg").read_text() == (images / "tutorial-graph.svg").read_text()
    assert pixels(written / "digit.png") == pixels(images / "tutorial-digit.png")
    assert (written / "docker-compose.yml").read_text() == (ROOT / "examples/tutorial/docker-compose.yml").read_text()


def pixels(path: Path) -> bytes:
    """Return what an image shows; versions of Pillow compress it differently."""
    with Image.open(path) as image:
        return image.tobytes()


def test_the_example_of_the_tutorial_is_what_its_pages_end_with() -> None:
    blocks = [
        block for page in TUTORIAL for language, block in _BLOCK.findall(page.read_text()) if language != "console"
    ]
    listed = {name[1]: block.partition("\n")[2] for block in blocks if (name := _NAME.match(block))}
    folder = ROOT / "examples" / "tutorial"

    assert listed.keys() >= {"digits.py", "models.py", "pyproject.toml", "requirements.txt"}
    assert {name: (folder / name).read_text() for name in listed} == listed
    assert {path.name for path in folder.glob("*.py")} <= listed.keys()


def test_the_tutorial_scales_a_service_that_its_stack_has() -> None:
    stack = (ROOT / "examples" / "tutorial" / "docker-compose.yml").read_text()
    (written_by,) = re.findall(r"^# Written by `(.+?)`", stack)
    text = (ROOT / "docs" / "tutorial" / "5-containers.md").read_text()
    scaled = re.findall(r"--scale (\w+)=\d+ (\w+)", text)

    assert f"$ {written_by}\n" in text
    assert scaled
    assert {name for names in scaled for name in names} <= set(re.findall(r"^  ([\w-]+):$", stack, re.M))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_block_compiles(path: Path) -> None:
    for language, text in _BLOCK.findall(path.read_text()):
        if language == "python":
            compile(text, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@cache
def help_of(*command: str) -> str:
    return CliRunner().invoke(main, [*command, "--help"]).output


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_qserve_command_in_the_documents_exists_with_its_options(path: Path) -> None:
    text = path.read_text()
    lines = [line.removeprefix("$ ") for _, block in _BLOCK.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
    named = [found.groups() for line in lines if (found := re.match(r"qserve ([a-z]+)(.*)", line))]
    for command, rest in named:
        assert re.search(rf"^  {command}\b", help_of(), re.M), f"qserve {command}"
        sub = [word for word in rest.split()[:1] if command in ("dlq", "requests") and word.isalpha()]
        known = help_of(command, *sub)
        for option in re.findall(r"--[a-z-]+", rest):
            assert re.search(rf"{option}\b(?!-)", known), f"qserve {command} {option}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_the_documents_leads_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", path.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        found = path.parent / target if target else path
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}, anchor


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "coming-from").glob("*.md")), ids=lambda path: path.name)
def test_the_figures_of_the_comparison_pages_are_those_that_were_measured(path: Path) -> None:
    performance, reliability = ((ROOT / "docs" / f"{page}.md").read_text() for page in ("performance", "reliability"))
    text = path.read_text()

    rows = {row for table in re.findall(r"^<!-- measured -->\n((?:\|.*\n)+)", text, re.M) for row in table.splitlines()}
    assert not rows - set(performance.splitlines()), "copy the rows that docs/performance.md has now"
    assert not {count for count in re.findall(r"\d+ of [\d,]+", text) if count not in reliability}


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("request-*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_described_in_words_and_has_colours_for_dark_pages(path: Path) -> None:
    text = path.read_text()
    picture = ElementTree.fromstring(text)
    named = {child.get("id"): child.text for child in picture}

    assert picture.get("role") == "img"
    assert all(named[one] for one in picture.get("aria-labelledby", "").split()), "a title and a description"
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_in_the_documents_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.M):
        assert target in targets, f"make {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_test_in_the_documents_exists(path: Path) -> None:
    for name, _, test in re.findall(
        r"`((?:qserve|workers|gateway|tests|tools|benchmarks|docs|examples)/[\w./-]*)(::(\w+))?", path.read_text()
    ):
        found = ROOT / name
        assert found.exists(), name
        assert not test or f"def {test}(" in found.read_text(), f"{name}::{test}"


@cache
def source() -> str:
    """The text of everything that reads settings or writes logs, with the parts of long strings put together."""
    files = [path for name in SOURCES for path in [ROOT / name, *(ROOT / name).rglob("*.py")] if path.is_file()]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in files))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_in_the_documents_is_read_somewhere(path: Path) -> None:
    named = set(re.findall(r"QSERVE_[A-Z_]*[A-Z](?![A-Z_.])", path.read_text()))

    derived = {f"QSERVE_{setting.name.upper()}" for setting in fields(Settings)}
    assert not named - derived - set(re.findall(r"QSERVE_[A-Z_]+", source()))


def assert_written(lines: Iterable[str], values: str) -> None:
    """Look for the words of these lines in the source; what ``values`` matches varies from one to the next."""
    words = [part.strip(" ;:") for line in lines for part in re.split(values, line)]

    assert not [part for part in words if len(part) > 4 and part not in source()]


def test_every_log_line_that_the_operations_page_explains_is_written_somewhere() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    explained = re.findall(r"`([^`]+)`", text.partition("| line | meaning |")[2].partition("\n\n")[0])

    assert_written(explained, r"\.{3}|\d+|[()]|[A-Z_]{5,}|qserve .*")


def test_the_doctor_says_what_the_operations_page_shows() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    (block,) = [block for _, block in _BLOCK.findall(text) if block.startswith("$ qserve doctor")]
    facts = BrokerFacts(
        "broker:6379/0", local=False, authenticated=True, server="valkey", version=(9, 1, 2), compatible=(7, 2, 4),
        maxmemory=104857600, policy="allkeys-lru", aof=False,
    )  # fmt: skip

    shown = block.partition("\n")[2].strip().splitlines()

    for line, finding in zip(shown, examine(facts), strict=True):
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        assert_shown(line, f"{finding.level:<8} {finding.what}{remedy}")


def test_the_imports_that_replace_those_of_ray_serve_work() -> None:
    replaced = re.findall(r"->  ((?:from|import) .+)", (ROOT / "docs" / "ray-parity.md").read_text())
    assert len(replaced) > 5

    for statement in replaced:
        exec(statement, {})


def test_the_broker_of_the_operations_page_starts_with_one_user_for_each_role(site: Site) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    (block,) = [block for _, block in _BLOCK.findall(text) if "valkey-server" in block]
    port = free_port()
    script = block.replace("valkey-server", f"exec {find_server()} --port {port} --bind 127.0.0.1", 1)

    site.start(["bash", "-euc", script.replace("qserve doctor", shlex.join([*QSERVE, "doctor"]))])

    wait_until(lambda: is_open(port), description="the broker listens")
    passwords = dict(re.findall(r"^user (\w+) on >(\w+)", (site.folder / "users.acl").read_text(), re.M))
    assert set(passwords) == {"gateway", "worker", "deployer", "operator", "tasks"}
    for user, password in passwords.items():
        with redis.Redis(port=port, username=user, password=password) as client:
            assert client.ping()


COMPOSE, UPGRADES = ROOT / "docs" / "deploy" / "compose.md", ROOT / "docs" / "deploy" / "upgrades.md"


def test_every_service_in_the_commands_of_the_pages_about_containers_is_in_a_stack() -> None:
    stack = (ROOT / "docker-compose.yml").read_text()
    services = set(re.findall(r"^  (\w+):$", stack.partition("\nservices:\n")[2].partition("\nvolumes:")[0], re.M))
    services |= {"model", "front"}  # of the page's own application
    blocks = [block for page in (COMPOSE, UPGRADES) for _, block in _BLOCK.findall(page.read_text())]
    typed = [line.split()[3:] for block in blocks for line in block.splitlines() if line.startswith("docker compose")]
    named = {word.partition("=")[0] for words in typed for word in words if not word.startswith("-")}

    assert named
    assert named <= services


@pytest.mark.slow
@pytest.mark.parametrize("page", ["deploy/one-host", "deploy/several-hosts", "how-to/three-hosts"])
@pytest.mark.long  # tests/e2e/test_roles.py has the roles apart
def test_the_roles_of_a_page_make_an_application_that_answers(page: str, site: Site) -> None:
    """Servers are started in the background; hosts, ports and names of other hosts are those of this machine."""
    blocks = _BLOCK.findall(COMPOSE.read_text())
    text = next(text for _, text in blocks if text.startswith("# shop.py"))
    site.write(
        "shop.py", text.replace("import emoji\n", "").replace("emoji.emojize", "str")
    )  # it is not installed here
    site.write("version.py", "VERSION = 1\n")
    given = _shell_blocks(page)
    if page == "deploy/several-hosts":
        given[:0] = _shell_blocks("deploy/one-host")[:2]
    replaced = {
        "6379": str(free_port()),
        "8000": str(free_port()),
        "8001": str(free_port()),
        "broker.example": "127.0.0.1",
        "0.0.0.0": "127.0.0.1",
    }
    variables = ""
    for text in given:
        for there, here in replaced.items():
            text = text.replace(there, here)
        text = text.replace("valkey-server", find_server())
        if text.startswith("export "):
            variables = text
            continue
        is_server = text.startswith((find_server(), "qserve worker", "qserve gateway"))
        script = f"PATH={Path(QSERVE[0]).parent}:$PATH\n{variables}{'exec ' if is_server else ''}{text}"
        shell = site.start(["bash", "-euc", script])
        assert is_server or shell.wait() == 0, shell.output
        if text.startswith("qserve gateway"):  # the command that asks it comes later, and does not try again
            port = int(text.rpartition("--port ")[2])
            wait_until(lambda port=port: is_open(port), description="the gateway listens")  # type: ignore[misc]
    answer = site.start(
        [
            "bash",
            "-euc",
            f"""
        curl --fail -s --retry 20 --retry-delay 1 --retry-all-errors -X POST http://127.0.0.1:{replaced["8000"]}/ \\
        -H 'Content-Type: application/json' -d '{{"name": "Dora"}}'""",
        ]
    )

    assert answer.wait() == 0, answer.output
    assert "1 Dora" in answer.stdout


def _shell_blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return [block for language, block in _BLOCK.findall(text) if language == "sh"]
