"""Many values that are counted at once, as replicas and gateways count what they have noted."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from qserve.metrics.recorder import Buckets

BOUNDS = (1.0, 2.0, 5.0, 10.0)
VALUES = st.lists(st.one_of(st.sampled_from((0.0, *BOUNDS)), st.floats(0, 20)), max_size=30)


@given(VALUES, VALUES)
def test_values_that_are_counted_at_once_are_counted_as_one_by_one(first: list[float], second: list[float]) -> None:
    at_once, one_by_one = Buckets(BOUNDS), Buckets(BOUNDS)
    for values in (first, second):
        at_once.observe_all(values)
        for value in values:
            one_by_one.observe(value)

    found, expected = at_once.taken(), one_by_one.taken()

    assert (found and found.counts) == (expected and expected.counts)
    if found and expected:
        assert abs(found.sum - expected.sum) < 1e-9


@given(VALUES)
def test_each_bucket_has_the_request_of_one_of_its_values(values: list[float]) -> None:
    buckets = Buckets(BOUNDS)

    buckets.observe_all(values, lambda index: (str(index), ""))

    found = buckets.taken()
    exemplars = {} if found is None else found.exemplars
    assert {*exemplars} == {bisect_left(BOUNDS, value) for value in values}
    for bucket, one in exemplars.items():
        assert values[int(one.request_id)] == one.value
        assert bisect_left(BOUNDS, one.value) == bucket


def test_a_value_whose_request_has_no_id_is_counted_without_an_exemplar() -> None:
    buckets = Buckets([1.0])

    buckets.observe_all([0.5, 2.0], lambda index: ("", "") if index else ("first", ""))

    taken = buckets.taken()
    assert taken is not None
    assert taken.counts == (1, 1)
    assert [one.request_id for one in taken.exemplars.values()] == ["first"]
