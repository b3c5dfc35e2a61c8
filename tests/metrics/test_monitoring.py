"""The dashboard and the alert rules name metrics and labels that exist, and Prometheus can read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qserve.metrics.table import TABLE
from qserve.wire.totals import Kind

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
RULES, DASHBOARD = FOLDER / "alerts.yml", FOLDER / "grafana.json"
SUFFIXES = {Kind.COUNTER: ("_total",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
SERIES = {f"qserve_{name}{suffix}": about for name, about in TABLE.items() for suffix in SUFFIXES[about.kind]}
OF_PROMETHEUS = {"instance", "worker", "le"}


def of_dashboard() -> Iterator[tuple[str, str]]:
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert query is not None
            yield variable["name"], f"sum by ({query[2]}) ({query[1]})"


EXPRESSIONS = [
    *(
        (rule["alert"], rule["expr"])
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
    ),
    *of_dashboard(),
]


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS])
def test_each_expression_names_metrics_and_labels_that_exist(title: str, expression: str) -> None:
    names = {*re.findall(r"\bqserve_\w+", expression)}
    selected = {*re.findall(r"(\w+)=~?\"", expression)}
    grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}

    assert names, title
    assert not names - {*SERIES}
    assert not (selected | grouped) - OF_PROMETHEUS - {label for name in names for label in SERIES[name].labels}


def test_every_panel_has_a_place_of_its_own_and_each_alert_says_what_to_do() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len({panel["id"] for panel in panels}) == len(panels)

    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in rules)
    text = (FOLDER.parent / "metrics.md").read_text()
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in text] == []


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed: apt-get install prometheus")
def test_prometheus_accepts_the_rules_and_every_expression(tmp_path: Path) -> None:
    panels = [
        {"record": f"a:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, (_, expression) in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": panels}]}))

    done = subprocess.run(
        ["promtool", "check", "rules", RULES, tmp_path / "panels.yml"], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
