"""The examples in docstrings that need no installation do what their comments say."""

from __future__ import annotations

import sys
from pathlib import Path

import docstring_examples
import pytest
from docstring_examples import EXAMPLES

import qserve

LOCAL = {path: code for path, code in EXAMPLES.items() if not docstring_examples.needs_installation(code)}
NOT_HERE = {"dag.plot": "pydot", "get_trace_context": "opentelemetry", "http_adapters.image_to_ndarray": "PIL"}


@pytest.mark.parametrize("path", LOCAL)
def test_an_example_prints_what_it_shows(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if path in NOT_HERE:
        pytest.importorskip(NOT_HERE[path])
    (tmp_path / "greetings.py").write_text(docstring_examples.GREETINGS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "greetings", raising=False)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    exec(docstring_examples.GREETINGS, namespace)

    docstring_examples.run(LOCAL[path], namespace, capsys)
    qserve.shutdown()
