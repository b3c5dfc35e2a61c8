"""W3C Trace Context, as its standard has it; what is malformed is ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.base.trace_context import STATE_CHARS, read_traceparent, read_tracestate

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
        (f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-{PARENT}-03"),  # of these flags, two have a meaning
        (f"cc-{TRACE}-{PARENT}-01", GOOD),  # a later version, read as far as it is known
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", GOOD),
        (f"cc-{TRACE}-{PARENT}-01.what", ""),
        (f"00-{TRACE}-{PARENT}-01-more", ""),
        (f"ff-{TRACE}-{PARENT}-01", ""),
        (f"00-{'0' * 32}-{PARENT}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (GOOD.upper(), ""),
        (f"00-{TRACE[:-1]}-{PARENT}-01", ""),
        (f"00-{TRACE}-{PARENT}-1", ""),
        (f"00_{TRACE}_{PARENT}_01", ""),
        (f" {GOOD}", ""),
        (f"{GOOD}\n", ""),
        (f"{GOOD},{GOOD}", ""),  # as a gateway gets it that was sent twice
        (GOOD.replace("0af", "٠af"), ""),  # digits, but not ours
        ("", ""),
        ("0" * 100_000, ""),
    ],
)
def test_a_traceparent_is_read_as_version_00_or_ignored(given: str, read: str) -> None:
    assert read_traceparent(given) == read


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("vendor=value", "vendor=value"),
        (" a=1 ,\t, b=2,", "a=1,b=2"),
        ("1tenant@system=x y", "1tenant@system=x y"),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("a=", ""),
        ("a=b=c", ""),
        ("a=ü", ""),
        ("a=1\r\nx-injected: 1", ""),
        (",".join(f"k{n}=v" for n in range(32)), ",".join(f"k{n}=v" for n in range(32))),
        (",".join(f"k{n}=v" for n in range(33)), ""),
        (f"long={'x' * 250},a={'y' * 100},b={'y' * 100},c={'y' * 100}", f"a={'y' * 100},b={'y' * 100},c={'y' * 100}"),
        (",".join(f"k{n}={'x' * 90}" for n in range(9)), ",".join(f"k{n}={'x' * 90}" for n in range(5))),
        ("a=1," * 2500, ""),  # 10 KB
    ],
)
def test_a_tracestate_is_read_in_its_shortest_form_or_ignored(given: str, read: str) -> None:
    assert read_tracestate(given) == read


@pytest.mark.slow
@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*", fullmatch=True))
def test_no_text_breaks_the_readers_and_what_they_return_they_read_again(text: str) -> None:
    parent = read_traceparent(text)
    assert parent == "" or (len(parent) == 55 and parent.startswith("00-") and read_traceparent(parent) == parent)
    state = read_tracestate(text)
    assert len(state) <= STATE_CHARS and read_tracestate(state) == state
    assert (parent + state).isprintable()


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z0-9_*/-]{0,20}", fullmatch=True),
            st.from_regex(r"[!-+.-<>-~]{1,200}", fullmatch=True),
        ),
        max_size=32,
        unique_by=lambda entry: entry[0],
    )
)
def test_entries_keep_their_order_and_only_whole_ones_are_left_out(entries: list[tuple[str, str]]) -> None:
    given = ["=".join(entry) for entry in entries]
    read = read_tracestate(",".join(given))
    kept = iter(given)
    assert all(entry in kept for entry in read.split(",") if entry)
    if len(",".join(given)) <= STATE_CHARS:
        assert read == ",".join(given)
