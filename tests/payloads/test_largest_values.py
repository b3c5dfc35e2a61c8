"""Values of nearly the most bytes that a value may have, from one process to another through the memory of the host."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from remote import remotes

pytestmark = pytest.mark.long
LIMIT = 2 << 30
NEEDED = 4 * LIMIT
OPEN = """
import hashlib
from pathlib import Path
import numpy
from qserve.payloads.segments import Segments
from qserve.wire.claim import claim_in
from qserve.wire.codec import Codec

class Values(Segments):
    threshold, max_bytes = 1 << 16, 2 << 30
    def put(self, parts, size, kind):
        return super().put(parts, size)

values = Values(lambda: "epoch", root=Path({root!r}))
codec = Codec(values=values)
"""
DIGEST = """
parts = [*value.values()] if type(value) is dict else [value]
parts = [part[0] if type(part) is list else part for part in parts]
result = [hashlib.sha256(part).hexdigest() for part in parts]
"""


@pytest.fixture(autouse=True)
def enough_memory(root: Path) -> None:
    free = shutil.disk_usage(root).free
    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    if available < NEEDED or free < 2 * LIMIT:
        pytest.skip(
            f"it takes {NEEDED >> 30} GiB of memory, of which {available >> 30} GiB are available, and"
            f" {2 * LIMIT >> 30} GiB of /dev/shm, of which {free >> 30} GiB are free"
        )


@pytest.mark.parametrize(
    ("make", "read"),
    [
        ("bytes(LIMIT - 4096)", "bytes"),
        ("numpy.arange((LIMIT - 4096) // 8)", "numpy.ndarray"),
        ("{'a': numpy.ones(LIMIT // 2 - 4096, 'u1'), 'b': [bytearray(LIMIT // 2 - 4096)]}", "dict"),
    ],
)
def test_a_value_just_below_the_limit_passes_and_one_above_it_is_refused(root: Path, make: str, read: str) -> None:
    with remotes(2) as (writer, reader):
        for process in (writer, reader):
            process.run(OPEN.format(root=str(root)) + f"LIMIT = {LIMIT}")
        writer.run(f"value = {make}")
        data = writer.run("result = (data := codec.encode(value)).hex()")

        reader.run(f"value = codec.decode(bytes.fromhex({data!r})); assert type(value) is {read}, type(value)")
        digests = [process.run(DIGEST) for process in (writer, reader)]
        reader.run("del value, parts")
        writer.run("values.forget([claim_in(data)]); del value, parts")

        assert digests[0] == digests[1]
        with pytest.raises(AssertionError, match="PayloadTooLarge: a value of type 'bytes' takes .* set by QSERVE_MAX"):
            writer.run("codec.encode(bytes(LIMIT + 1))")
