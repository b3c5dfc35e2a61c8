"""What the documents say is what happens: their code is run, their commands and links exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from processes import QSERVE, Site

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.S | re.M)


def post(url: str, value: object) -> str:
    with urllib.request.urlopen(url, json.dumps(value).encode(), timeout=10) as answer:
        return answer.read().decode()


def test_the_first_example_of_the_readme_answers_as_it_says(site: Site) -> None:
    folder = site.write("hello.py", code_blocks(ROOT / "README.md", "python")[0])

    serving = site.run("hello:language_classifier", cwd=folder)

    assert post(serving.url, {"name": "Dora"}) == "Hola Dora"


def test_the_answer_for_later_of_the_guide_is_had_as_it_says(site: Site) -> None:
    folder = site.write("hello.py", code_blocks(ROOT / "README.md", "python")[0])
    (script,) = code_blocks(ROOT / "docs" / "guide.md", "sh")

    serving = site.run("hello:language_classifier", cwd=folder)

    shell = site.start(["sh", "-euc", script], env={"URL": serving.url})
    assert shell.wait() == 0, shell.output
    assert shell.stdout == "Hola Dora409"


def test_the_graph_of_the_readme_answers_over_http_and_from_python(site: Site) -> None:
    _, graph, calls, *_ = code_blocks(ROOT / "README.md", "python")
    folder = site.write("arithmetic_adapter.py", graph)

    serving = site.run("arithmetic_adapter:graph", cwd=folder)
    assert post(serving.url, 5) == "9"

    port = serving.port
    serving.process.stop()
    lines = [line.partition("#")[0].rstrip() for line in calls.splitlines()]
    program = [graph, lines[0].replace("run(graph)", f"run(graph, port={port})"), f"print({lines[1]})"]
    site.write("program.py", "\n".join(program))
    script = site.start([sys.executable, "program.py"], cwd=folder)
    assert script.wait() == 0, script.output
    assert script.stdout.strip() == "9"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_qserve_command_in_the_documents_exists(path: Path) -> None:
    named = set(re.findall(r"`qserve ([a-z]+)", path.read_text())) | set(
        re.findall(r"^(?:\$ )?qserve ([a-z]+)", path.read_text(), re.M)
    )
    known = subprocess.run([*QSERVE, "--help"], capture_output=True, text=True, check=True).stdout
    for command in named:
        assert re.search(rf"^  {command}\b", known, re.M), f"qserve {command}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_the_documents_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_in_the_documents_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"`make ([a-z-]+)", path.read_text()):
        assert target in targets, f"make {target}"
