"""What an id tells of its request."""

from __future__ import annotations

import os

from qserve.wire.request_ids import (
    id_of_key,
    is_genuine,
    is_of_response,
    is_of_value,
    is_request_id,
    new_response_id,
    new_value_id,
)


def test_an_id_tells_in_which_form_its_result_is_stored() -> None:
    values = [new_value_id() for _ in range(100)]
    responses = [new_response_id() for _ in range(100)] + [id_of_key(str(key), "app", "ns", None) for key in range(100)]

    assert len({*values, *responses}) == 300
    assert all(map(is_request_id, values + responses))
    assert all(is_of_value(one) and not is_of_response(one) for one in values)
    assert all(is_of_response(one) and not is_of_value(one) for one in responses)


def test_a_private_or_made_up_id_is_not_genuine() -> None:
    private = [os.urandom(16).hex() for _ in range(100)]

    assert all(map(is_request_id, private))
    assert not any(map(is_genuine, [*private, *(f"{number:032x}" for number in range(1000))]))


def test_the_id_of_a_key_depends_on_all_that_it_belongs_to() -> None:
    made = {id_of_key(*given) for given in [
        ("k", "a", "n", None), ("k", "a", "n", b"s"), ("k", "a", "n", b"t"), ("l", "a", "n", b"s"),
        ("k", "b", "n", b"s"), ("k", "a", "m", b"s"),
    ]}  # fmt: skip
    assert len(made) == 6
    assert id_of_key("k", "a", "n", b"s") == id_of_key("k", "a", "n", b"s")
