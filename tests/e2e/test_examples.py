"""Every example as its docstring says to run it: real processes, real HTTP, the output compared."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import READY, Serving, Site, free_port, new_site

EXAMPLES = Path(__file__).parents[2] / "examples"

DRAWINGS = """\
digraph G {
rankdir=LR;
forward -> combine;
INPUT_ATTRIBUTE_NODE -> forward;
INPUT_NODE -> INPUT_ATTRIBUTE_NODE;
Model -> forward;
forward_1 -> combine;
INPUT_ATTRIBUTE_NODE_1 -> forward_1;
INPUT_NODE -> INPUT_ATTRIBUTE_NODE_1;
Model_1 -> forward_1;
INPUT_ATTRIBUTE_NODE_2 -> combine;
INPUT_NODE -> INPUT_ATTRIBUTE_NODE_2;
}

digraph G {
rankdir=LR;
INPUT_ATTRIBUTE_NODE -> forward;
INPUT_NODE -> INPUT_ATTRIBUTE_NODE;
Model -> forward;
}
"""


def run_script(site: Site, name: str, port: int) -> str:
    """Run an example to its end, and answer what it printed."""
    process = site.start([sys.executable, name], cwd=EXAMPLES, env={"PORT": str(port)})
    assert process.wait() == 0, process.output
    return process.stdout


FIRST = "hello:language_classifier"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Site, Serving]]:
    """``qserve run`` of the first example; the others are deployed in its place, which is what it does with them."""
    with new_site() as site:
        yield site, site.run(FIRST, cwd=EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "client", "answer"),
    [
        # the README has this program
        pytest.param(FIRST, "hello_client.py", "Hola Dora\n", marks=pytest.mark.long),
        ("echo:foo_node", "echo_client.py", "foo\n"),
        # these graphs are in tests/local/test_graph_arguments.py too, and their adapters in tests/http
        pytest.param("arithmetic:graph", "arithmetic_client.py", "9\n", marks=pytest.mark.long),
        pytest.param("arithmetic_adapter:graph", "arithmetic_client.py", "9\n", marks=pytest.mark.long),
        ("chat:chat", "chat_client.py", "Hello Dora\nHello Finn\n"),
    ],
)
def test_an_example_answers_its_client(running: tuple[Site, Serving], target: str, client: str, answer: str) -> None:
    site, serving = running
    deploy = site.qserve("deploy", target, cwd=EXAMPLES)
    assert deploy.wait() == 0, deploy.output

    assert run_script(site, client, serving.port) == answer


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        # the graphs are those of tests/local/test_graph_arguments.py
        *(
            pytest.param(script, printed, marks=pytest.mark.long)
            for script, printed in (
                ("echo.py", "foo\nbar\nbaz\n"),
                ("arithmetic_python.py", "9\n"),
                ("linear_pipeline.py", "8\n"),
                ("branching_input.py", "3\n"),
                ("conditional.py", "2\n3\n"),
            )
        ),
        ("visualization.py", DRAWINGS),
    ],
)
def test_an_example_runs_as_a_script_and_leaves_nothing(site: Site, script: str, printed: str) -> None:
    said = run_script(site, script, free_port())

    assert said.strip() == printed.strip()
    site.wait_empty()


@pytest.mark.long  # tests/faults/test_program_end.py submits and ends, tests/calls fetches
def test_one_program_submits_and_ends_and_another_one_fetches_the_results(site: Site) -> None:
    env = {"QSERVE_BROKER_URL": site.broker(), "QSERVE_SECRET_KEY": "a-secret-of-this-test"}
    serving = site.qserve("run", "reports:app", "--port", str(free_port()), cwd=EXAMPLES, env=env)
    serving.wait_for(READY)

    enqueue = site.start([sys.executable, "reports_enqueue.py"], cwd=EXAMPLES, env=env)
    assert enqueue.wait() == 0, enqueue.output
    ids = site.write("ids", enqueue.stdout) / "ids"
    fetch = site.start(["sh", "-c", f"{sys.executable} reports_fetch.py < {ids}"], cwd=EXAMPLES, env=env)

    assert fetch.wait() == 0, fetch.output
    assert fetch.stdout == "May 6\nJune 8\nSeptember 18\n"


def test_no_example_is_left_out() -> None:
    source, index = Path(__file__).read_text(), (EXAMPLES / "README.md").read_text()

    for path in EXAMPLES.glob("*.py"):
        assert path.name in source or f'"{path.stem}:' in source, f"{path.name} is not run here"
        helps = re.search(r"_(client|models|enqueue|fetch)$", path.stem)
        assert helps or f"({path.name})" in index, f"{path.name} is not in the index"
    for folder in (path.parent for path in EXAMPLES.rglob("*/*.py")):
        readme = folder / "README.md"  # which tests/e2e/test_documents.py follows
        assert f"({readme.relative_to(EXAMPLES)})" in index, f"{folder.name} is not in the index"
        programs, words = {path.name for path in folder.glob("*.py")}, readme.read_text()
        assert not [name for name in programs if name not in words and f" {name[:-3]}:" not in words]
