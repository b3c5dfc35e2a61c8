"""A scaling policy of the user's is told what Ray Serve's would be, and what it returns is checked."""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import Any

import pytest

from qserve.engine.policy import STATE_LIMIT, AutoscalingContext, Policy
from qserve.wire.application import Scaling

CONTEXT = AutoscalingContext("Model", "shop", 2, 3, total_num_requests=12.0, policy_state={"seen": 1})
left: ContextVar[str] = ContextVar("left", default="")


def by_load(context: AutoscalingContext, each: float = 2.0) -> tuple[float, dict[str, Any]]:
    return context.total_num_requests / each, {"seen": context.policy_state["seen"] + 1}


class Counting:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        self.count += 1
        return self.count, {}


class Seven:
    def __float__(self) -> float:
        return 7.0


def test_a_function_gets_the_context_and_its_arguments() -> None:
    assert Policy(by_load, {}).ask(CONTEXT) == (6.0, {"seen": 2})
    assert Policy(by_load, {"each": 3}).ask(CONTEXT) == (4.0, {"seen": 2})
    assert CONTEXT.deployment_id == ("Model", "shop")


def test_an_object_of_a_class_is_kept() -> None:
    policy = Policy(Counting, {"start": 4})

    assert [policy.ask(CONTEXT)[0] for _ in range(3)] == [5, 6, 7]


@pytest.mark.parametrize("found", [(7, {}), (7.0, None), (Seven(), {})])
def test_any_number_counts(found: Any) -> None:
    assert Policy(lambda context: found, {}).ask(CONTEXT) == (7.0, {})


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (7, r"must return \(number, dict\), not int"),
        (None, r"must return \(number, dict\), not NoneType"),
        ((7,), "must return"),
        ((7, [1]), "must return"),
        (("7", {}), "must be a number, not str"),
        ((True, {}), "must be a number, not bool"),
        ((None, {}), "must be a number, not NoneType"),
        ((float("nan"), {}), "must be finite, not nan"),
        ((float("inf"), {}), "must be finite, not inf"),
        ((7, {"x": {1}}), "not JSON serializable"),
        ((7, {"x": float("nan")}), "not JSON compliant"),
        ((7, {"x": "a" * STATE_LIMIT}), "the limit is 65,536"),
    ],
)
def test_anything_else_is_an_error_that_says_what_to_return(found: Any, why: str) -> None:
    policy = Policy(lambda context: found, {})

    with pytest.raises((TypeError, ValueError), match=why):
        policy.ask(CONTEXT)
    assert "error" in json.loads(policy.answer(b'{"deployment_name": "Model", "app_name": "shop", '
                                               b'"current_num_replicas": 1, "target_num_replicas": 1}'))  # fmt: skip


def test_a_policy_that_is_async_is_refused() -> None:
    async def later(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        return 1, {}

    with pytest.raises(TypeError, match="not coroutine"):
        Policy(later, {}).ask(CONTEXT)


@pytest.mark.parametrize(
    ("code", "why"), [(3, "must be a function or a class, not int"), (Seven, "Seven needs a meth")]
)
def test_code_that_cannot_be_called_is_refused(code: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        Policy(code, {})


def test_it_is_told_and_answers_in_json() -> None:
    told = {
        **{"deployment_name": "Model", "app_name": "shop", "current_num_replicas": 2, "target_num_replicas": 3},
        **{"total_num_requests": 12, "policy_state": {"seen": 1}, "config": {"max_replicas": 9}},
    }

    assert json.loads(Policy(by_load, {}).answer(json.dumps(told).encode())) == {"count": 6.0, "state": {"seen": 2}}
    told["raw_metrics"] = {"queued": {"Model-1": [[1000.0, 4.0], [1002.0, 7.0]]}}
    newest = Policy(lambda context: (context.raw_metrics["queued"]["Model-1"][-1].value, {}), {})
    assert json.loads(newest.answer(json.dumps(told).encode()))["count"] == 7

    highest = Policy(lambda context: (context.config.max_replicas, {}), {})
    assert json.loads(highest.answer(json.dumps(told).encode()))["count"] == 9
    assert AutoscalingContext("a", "b", 1, 1).config == Scaling()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no\nway"), "ValueError: no …"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInt"),
    ],
)
def test_whatever_it_raises_is_told_in_one_line(error: BaseException, said: str) -> None:
    def fail(context: AutoscalingContext) -> None:
        raise error

    told = b'{"deployment_name": "Model", "app_name": "shop", "current_num_replicas": 1, "target_num_replicas": 1}'

    assert json.loads(Policy(fail, {}).answer(told))["error"].startswith(said)
    assert "JSONDecodeError" in json.loads(Policy(fail, {}).answer(b"{"))["error"]


def test_what_it_leaves_in_the_context_is_gone_the_next_time() -> None:
    def leave(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        before = left.get()
        left.set("something")
        return 1, {"before": before}

    policy = Policy(leave, {})

    assert [policy.ask(CONTEXT)[1] for _ in range(2)] == [{"before": ""}] * 2
    assert left.get() == ""
