"""What `qserve deploy` prints while it waits."""

from __future__ import annotations

import pytest

from qserve.cli.deploy import show_progress


@pytest.mark.parametrize(("running", "words"), [(2, "2/3 starting"), (3, "3/3 ready"), (4, "3/3 ready (4 run)")])
def test_replicas_are_counted_up_to_those_that_are_waited_for(
    running: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_progress("Model", running, 3)

    assert " ".join(capsys.readouterr().out.split()) == f"Model {words}"
