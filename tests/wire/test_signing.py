"""Seals: what was sealed for one place opens there, with one of the keys, and nowhere else."""

from __future__ import annotations

import hmac
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.base.keyring import Keyring
from qserve.exceptions import PayloadError
from qserve.wire.sealing import Seal

OLD, NEW = b"old secret", b"new secret"


@given(context=st.binary(max_size=40), body=st.binary(max_size=200))
@pytest.mark.parametrize("keys", [Keyring(), Keyring(OLD)], ids=["without a key", "with a key"])
def test_what_was_sealed_opens_in_its_place(keys: Keyring, context: bytes, body: bytes) -> None:
    seal = Seal(keys)
    assert seal.open(context, seal.seal(context, body)) == body


@given(context=st.binary(max_size=40), other=st.binary(max_size=40), body=st.binary(max_size=60))
def test_it_opens_in_no_other_place(context: bytes, other: bytes, body: bytes) -> None:
    seal = Seal(Keyring(OLD))
    sealed = seal.seal(context, body)
    if other != context:
        with pytest.raises(PayloadError, match="was made for another place"):
            seal.open(other, sealed)


@given(body=st.binary(max_size=60), data=st.data())
def test_a_message_of_which_one_bit_was_changed_does_not_open(body: bytes, data: st.DataObject) -> None:
    seal = Seal(Keyring(OLD))
    sealed = bytearray(seal.seal(b"place", body))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PayloadError):
        seal.open(b"place", bytes(sealed))


@given(sealed=st.binary(max_size=120))
@pytest.mark.parametrize("keys", [Keyring(), Keyring(OLD)], ids=["without a key", "with a key"])
def test_bytes_that_nobody_sealed_give_a_payload_error_or_an_unsigned_body(keys: Keyring, sealed: bytes) -> None:
    try:
        body = Seal(keys).open(b"place", sealed)
    except PayloadError:
        return
    assert keys.current is None and sealed == b"\x01\x00" + body


def test_where_a_key_ends_and_a_body_begins_is_part_of_the_seal() -> None:
    seal = Seal(Keyring(OLD))
    head, rest = seal.seal(b"ab", b"c")[:38], b"bc"
    with pytest.raises(PayloadError):
        seal.open(b"a", head + rest)


@given(key=st.binary(min_size=1, max_size=100), body=st.binary(max_size=100))
def test_the_tag_is_hmac_sha256(key: bytes, body: bytes) -> None:
    sealed = Seal(Keyring(key)).seal(b"place", body)
    head, tag = sealed[:6], sealed[6:38]
    assert tag == hmac.digest(key, head + b"5|place" + body, "sha256")


def test_while_a_key_is_changed_both_are_accepted_in_both_directions() -> None:
    before, after = Seal(Keyring(OLD, (NEW,))), Seal(Keyring(NEW, (OLD,)))
    assert after.open(b"place", before.seal(b"place", b"body")) == b"body"
    assert before.open(b"place", after.seal(b"place", b"body")) == b"body"


def test_a_key_that_was_dropped_is_accepted_no_more() -> None:
    with pytest.raises(PayloadError, match="QSERVE_ACCEPTED_KEYS"):
        Seal(Keyring(NEW)).open(b"place", Seal(Keyring(OLD)).seal(b"place", b"body"))


def test_a_process_with_a_key_takes_nothing_unsigned() -> None:
    with pytest.raises(PayloadError, match="QSERVE_SECRET_KEY"):
        Seal(Keyring(OLD)).open(b"place", Seal(Keyring()).seal(b"place", b"body"))


def test_a_process_that_only_accepts_keys_takes_nothing_unsigned_either() -> None:
    accepting = Keyring(None, (OLD,))
    seal = Seal(accepting)
    assert seal.open(b"place", Seal(Keyring(OLD)).seal(b"place", b"body")) == b"body"
    with pytest.raises(PayloadError, match="set QSERVE_SECRET_KEY"):
        seal.open(b"place", Seal(Keyring()).seal(b"place", b"body"))
    assert accepting.verify(pickle.dumps("unsigned")) is None


def test_a_process_without_a_key_says_so_when_a_signed_message_comes() -> None:
    with pytest.raises(PayloadError, match="this process has no key"):
        Seal(Keyring()).open(b"place", Seal(Keyring(OLD)).seal(b"place", b"body"))


def test_a_format_of_the_future_is_told_apart() -> None:
    with pytest.raises(PayloadError, match="only a newer qserve reads"):
        Seal(Keyring(OLD)).open(b"place", b"\x02\x01" + bytes(60))


def test_a_signature_under_a_pickle_is_taken_from_either_key() -> None:
    signed = Keyring(OLD).sign(b"pickle")
    assert Keyring(NEW, (OLD,)).verify(signed) == b"pickle"
    assert Keyring(NEW).verify(signed) is None
