"""The benchmarks run, with the smallest sizes; what their figures say depends on the machine, and is not checked."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from processes import Site

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
SVG = "{http://www.w3.org/2000/svg}"

# no other test runs these programs; they need what only `make long` installs
pytestmark = [pytest.mark.slow, pytest.mark.long]


def run(site: Site, *arguments: str, **env: str) -> tuple[str, dict[str, Any]]:
    """Run benchmarks; return what they print, and the data of each figure."""
    out = site.folder / "out"
    command = [sys.executable, str(ROOT / "benchmarks"), *arguments, "--out", str(out)]
    program = site.start(command, env=env)
    assert program.wait() == 0, program.output
    return program.stdout, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def check(site: Site, printed: str, figure: dict[str, Any]) -> None:
    """Check that a table and a picture are whole."""
    columns = len(figure["columns"])
    header = "| " + " | ".join(figure["columns"]) + " |"
    table = printed.partition(header)[2].strip().partition("\n\n")[0].splitlines()
    assert len(table) == len(figure["rows"]) + 1, printed
    assert all(len(row) == columns for row in figure["rows"])
    assert figure["law"] and "cores" in figure["machine"]
    picture = ElementTree.parse(site.folder / "out" / f"{figure['name']}.svg").getroot()
    texts = {"".join(text.itertext()) for text in picture.iter(f"{SVG}text")}
    assert figure["title"] in texts
    assert "prefers-color-scheme:dark" in "".join(style.text or "" for style in picture.iter(f"{SVG}style"))
    assert not re.search("#0[1-8]0[1-8]0[1-8]", ElementTree.tostring(picture).decode()), "a colour is not a variable"
    assert f"<!-- benchmark: {figure['name']} -->" in PAGE.read_text()


@pytest.mark.parametrize(
    ("program", "sizes", "more", "names"),
    [
        ("depth", "1,2", [], {"depth"}),
        ("width", "1,2", [], {"width"}),
        ("payload", "1000,100000", [], {"payload"}),
        ("in_flight", "1,2", [], {"in_flight"}),
        ("replicas", "1,2", [], {"replicas"}),
        ("deployments", "1,2", [], {"deployments"}),
        ("streams", "1,10", ["--at-once", "1,2"], {"stream_items", "streams_at_once"}),
        ("idle", "1,2", ["--watch-s", "1", "--settle-s", "0"], {"idle"}),
        ("compare", "qserve", ["--workloads", "chain,array"], {"compare_chain", "compare_array"}),
        ("pipeline", "qserve", [], {"pipeline"}),
    ],
)
def test_a_benchmark_prints_a_table_and_draws_a_picture(
    site: Site, program: str, sizes: str, more: list[str], names: set[str]
) -> None:
    printed, figures = run(site, program, "--sizes", sizes, "--seconds", "0.1", *more)

    assert set(figures) == names
    for figure in figures.values():
        check(site, printed, figure)
        assert all(
            row[figure["columns"].index("failed")] == 0 for row in figure["rows"] if "failed" in figure["columns"]
        )


def test_a_system_that_cannot_be_installed_has_the_reason_in_its_row(site: Site) -> None:
    chosen = ["--sizes", "qserve,litserve", "--workloads", "single", "--seconds", "0.1"]
    nowhere = {"HOME": str(site.folder), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}

    printed, figures = run(site, "compare", *chosen, **nowhere)

    ours, theirs = figures["compare_single"]["rows"]
    assert ours[0] == "qserve" and ours[5] > 0
    assert theirs[0] == "LitServe" and theirs[1].startswith("none: litserve cannot be installed: ")
    check(site, printed, figures["compare_single"])


def test_figures_replace_those_in_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from harness.figures import Figure, Panel
    from harness.program import into_docs

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark: depth -->\nold\n<!-- end of benchmark -->\nafter\n")
    figure = Figure(
        "depth", "Depth", ("steps", "ms"), [(1, 0.5), (2, 1.0)], (Panel("ms", ("ms",)),), "It grows.", "2 cores"
    )

    into_docs(figure, page, tmp_path)
    into_docs(figure, page, tmp_path)

    table = "| steps | ms |\n| --- | --- |\n| 1 | 0.500 |\n| 2 | 1.00 |"
    block = f"![Depth](images/benchmark-depth.svg)\n\nIt grows.\n\n{table}\n\nMeasured on 2 cores.\n"
    assert page.read_text() == f"before\n<!-- benchmark: depth -->\n{block}<!-- end of benchmark -->\nafter\n"
    ElementTree.parse(tmp_path / "benchmark-depth.svg")
