"""The examples in docstrings that need no installation do what their comments say."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import docstring_examples
import pytest

import qserve

NEEDS = {"dag.plot": "pydot", "get_trace_context": "opentelemetry", "http_adapters.image_to_ndarray": "PIL"}


@pytest.mark.slow
def test_the_examples_print_what_they_show(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "greetings.py").write_text(docstring_examples.GREETINGS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    failed = {}
    for path, code in docstring_examples.examples().items():
        if docstring_examples.needs_installation(code) or (path in NEEDS and find_spec(NEEDS[path]) is None):
            continue
        monkeypatch.delitem(sys.modules, "greetings", raising=False)
        namespace = {"__name__": "__main__"}
        exec(docstring_examples.GREETINGS, namespace)
        try:
            docstring_examples.run(code, namespace, capsys)
        except Exception as error:
            failed[path] = error
        qserve.shutdown()
    assert not failed
