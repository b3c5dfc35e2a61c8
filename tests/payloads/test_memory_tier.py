"""Values in the memory of the host, written and read by real processes."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from remote import Remote, remotes
from second_user import as_second_user, needs_root

from qserve.exceptions import PayloadError, ValueLost, ValueUnreachable
from qserve.payloads import writer as module
from qserve.payloads.segments import VIEWS_LIMIT, Segments
from qserve.payloads.shm_folder import remove_abandoned
from qserve.payloads.tier import TierFull
from qserve.wire.claim import MEMORY, Claim, apart, wrap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
MB = 1 << 20
OPEN = """
from pathlib import Path
from qserve.payloads.segments import Segments
from qserve.wire.claim import apart, wrap
segments = Segments(lambda: "epoch", root=Path({root!r}))
def put(data): return wrap(segments.put([(0, memoryview(data))], len(data)), b"").hex()
def claim_of(written): return apart(bytes.fromhex(written))[0]
def get(written): return segments.get(claim_of(written))
"""


@pytest.fixture
def segments(root: Path) -> Segments:
    return Segments(lambda: "epoch", root=root)


@pytest.fixture
def start(root: Path) -> Iterator[Callable[[], Remote]]:
    """Starts a process that has the functions ``put`` and ``get``."""
    with remotes(0) as started:

        def start_one() -> Remote:
            started.append(Remote())
            started[-1].run(OPEN.format(root=str(root)))
            return started[-1]

        yield start_one


def put(segments: Segments, data: bytes) -> Claim:
    return segments.put([(0, memoryview(data))], len(data))


def claim_of(written: str) -> Claim:
    claim = apart(bytes.fromhex(written))[0]
    assert claim is not None
    return claim


def written(claim: Claim) -> str:
    return wrap(claim, b"").hex()


def values(root: Path) -> list[Path]:
    return list(root.glob("*/v/*"))


def files_of_writers(root: Path) -> list[Path]:
    return list(root.glob("*/p/*/*"))


def nobody_knows(names: list[str]) -> list[bool]:
    return [False] * len(names)


def test_parts_are_read_where_they_were_put(segments: Segments) -> None:
    claim = segments.put([(0, memoryview(b"one")), (64, memoryview(b"two"))], 67)

    view = segments.get(claim)

    assert (bytes(view[:3]), bytes(view[64:])) == (b"one", b"two")
    assert view.readonly


@pytest.mark.parametrize("size", [1, 4096, 61_440, 61_441, 65_536, 8 * MB, 8 * MB + 1])
def test_a_value_of_any_size_is_read_by_another_process(
    segments: Segments, start: Callable[[], Remote], size: int
) -> None:
    data = os.urandom(size)

    reader = start()
    for _ in range(3):  # a fresh segment, one that is mapped for the first time, and one that is mapped already
        claim = put(segments, data)
        found = reader.run(f"import hashlib; result = hashlib.sha256(get({written(claim)!r})).hexdigest()")
        assert found == hashlib.sha256(data).hexdigest()
        segments.forget([claim])


def test_a_segment_is_used_again_when_its_value_is_gone(segments: Segments, root: Path) -> None:
    for _ in range(5):
        segments.forget([put(segments, b"x" * MB)])

    assert len([path for path in files_of_writers(root) if path.name.isdigit()]) == 1


def test_a_segment_is_used_again_when_its_value_was_read_by_another_process(
    segments: Segments, start: Callable[[], Remote], root: Path
) -> None:
    reader = start()
    for number in range(5):
        claim = put(segments, bytes([number]) * MB)
        assert reader.run(f"view = get({written(claim)!r}); result = view[0] + view[-1]; del view") == 2 * number
        segments.settled([claim.name])
        segments.forget([claim])

    assert len([path for path in files_of_writers(root) if path.name.isdigit()]) == 1


def test_values_are_stored_again_after_somebody_has_emptied_the_memory(segments: Segments, root: Path) -> None:
    segments.forget([put(segments, b"before")])
    for path in root.iterdir():
        shutil.rmtree(path)

    assert bytes(segments.get(put(segments, b"after"))) == b"after"


def test_a_segment_is_not_used_again_while_its_value_has_a_name_or_a_reader(segments: Segments) -> None:
    claim = put(segments, b"a" * MB)
    put(segments, b"b" * MB)
    view = segments.get(claim)
    part = view[10:20]
    segments.forget([claim])
    del view
    put(segments, b"c" * MB)

    assert bytes(part) == b"a" * 10


def test_a_value_that_is_gone_is_lost(segments: Segments) -> None:
    claim = put(segments, b"x" * 100_000)
    segments.forget([claim])
    put(segments, b"y" * 100_000)

    with pytest.raises(ValueLost, match=r"a value of 100000 bytes is no longer in the memory of the host .*QSERVE_PAY"):
        segments.get(claim)


def test_a_value_of_another_host_says_which_and_what_to_set(segments: Segments) -> None:
    claim = put(segments, b"x")
    _, token, folder = claim.place.split("/")
    elsewhere = claim._replace(place=f"other.example/{'0' * 32}/{folder}")

    with pytest.raises(ValueUnreachable, match=r"memory of the host 'other.example', which .* set QSERVE_PAYLOADS to"):
        segments.get(elsewhere)
    with pytest.raises(ValueUnreachable):
        segments.get(elsewhere._replace(place=f"other.example/{token}/qserve-1-{'0' * 16}"))
    with pytest.raises(ValueLost):  # the memory of this host has been emptied meanwhile
        segments.get(claim._replace(place=claim.place.replace(token, "0" * 32)))


def test_a_claim_that_says_something_else_than_its_value_is_refused(segments: Segments) -> None:
    claim = put(segments, b"x")

    with pytest.raises(PayloadError, match="is not the one that was claimed"):
        segments.get(claim._replace(digest=b"0" * 16))
    with pytest.raises(PayloadError, match="its claim says"):
        segments.get(claim._replace(size=MB))


def test_a_reader_that_comes_while_its_value_is_replaced_has_lost_it(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, lock = put(segments, b"x"), fcntl.flock
    later = []

    def replace_first(descriptor: int, how: int) -> None:
        if how & fcntl.LOCK_SH and not later:
            segments.forget([claim])
            later.append(put(segments, b"y"))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", replace_first)

    with pytest.raises(ValueLost):
        segments.get(claim)
    assert bytes(segments.get(later[0])) == b"y"


def test_what_is_between_the_parts_of_a_value_has_its_memory_too(segments: Segments, root: Path) -> None:
    segments.put([(0, memoryview(b"x")), (MB, memoryview(b"y"))], MB + 1)

    (path,) = values(root)
    assert path.stat().st_blocks * 512 > MB


@pytest.mark.slow
def test_what_a_reader_has_never_changes_while_two_processes_use_segments_again(
    start: Callable[[], Remote], root: Path
) -> None:
    writers, reader = [start(), start()], start()
    for number, writer in enumerate(writers):
        writer.send(
            "made = []\n"
            "for n in range(600):\n"
            "    made.append(put(bytes([1 + n % 250]) * 300_000))\n"
            f"    with open({str(root / str(number))!r}, 'w') as file: file.write(made[-1])\n"
            "    if n >= 4: segments.forget([claim_of(made[n - 4])])\n"
            "result = len(list(segments._root.glob('*/p/*/[0-9]*')))"
        )
    seen, wrong = reader.run(
        "import itertools; from qserve.exceptions import ValueLost\n"
        "views, seen, wrong = [], 0, 0\n"
        "for turn in itertools.count():\n"
        "    if seen == 200: break\n"  # the last values of the writers are there for ever
        f"    written = Path({str(root)!r}, str(turn % 2))\n"
        "    text = written.read_text() if written.exists() else ''\n"
        "    if not text: continue\n"
        "    try: views.append(get(text))\n"
        "    except ValueLost: continue\n"
        "    seen += 1\n"
        "    wrong += sum(bytes(view) != bytes([view[0]]) * 300_000 for view in views)\n"
        "    views = views[-8:]\n"
        "result = [seen, wrong]"
    )

    assert (seen, wrong) == (200, 0)
    assert max(writer.reply() for writer in writers) < 100  # of 1200 values: segments were used again


def test_values_of_a_killed_writer_stay_if_the_broker_knows_them_and_go_if_not(
    segments: Segments, start: Callable[[], Remote], root: Path
) -> None:
    writer = start()
    settled, new = claim_of(writer.run("result = put(b'a' * 100_000)")), claim_of(writer.run("result = put(b'b')"))
    writer.run(f"segments.settled([{settled.name!r}])")

    def known(names: list[str]) -> list[bool]:
        return [name == settled.name for name in names]

    for _ in range(3):
        segments.sweep(known)
    assert len(values(root)) == 2  # the new one is its writer's, although the broker does not know it

    writer.kill()
    segments.sweep(known)
    assert len(values(root)) == 2  # its command may be on the way to the broker
    segments.sweep(known)

    assert [path.name for path in values(root)] == [settled.name]
    assert bytes(segments.get(settled)) == b"a" * 100_000
    with pytest.raises(ValueLost):
        segments.get(new)
    assert files_of_writers(root) == []


def test_a_value_that_the_broker_does_not_know_goes_at_the_second_sweep(segments: Segments, root: Path) -> None:
    claim = put(segments, b"x")
    segments.settled([claim.name])

    segments.sweep(nobody_knows)
    assert len(values(root)) == 1
    segments.sweep(nobody_knows)
    assert values(root) == []


def test_a_reader_that_is_killed_gives_its_value_back(
    segments: Segments, start: Callable[[], Remote], root: Path
) -> None:
    reader = start()
    claim = put(segments, b"x" * MB)
    reader.run(f"view = get({written(claim)!r})")
    segments.forget([claim])
    segments.forget([put(segments, b"y" * MB)])
    numbered = [path for path in files_of_writers(root) if path.name.isdigit()]
    assert len(numbered) == 2  # the first is being read

    reader.kill()
    for _ in range(2):
        put(segments, b"z" * MB)

    assert len([path for path in files_of_writers(root) if path.name.isdigit()]) == 2


@pytest.mark.slow
def test_a_forked_child_keeps_what_its_parent_has_read_and_writes_for_itself(start: Callable[[], Remote]) -> None:
    parent, writer = start(), start()
    claim = writer.run("result = put(b'a' * 100_000)")
    parent.run(
        f"import os; segments.forget([claim_of(put(b'c'))]); view = get({claim!r})\n"
        "there, here = os.pipe(), os.pipe()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.write(here[1], b'forked')\n"
        "    os.read(there[0], 1)\n"
        "    os.write(here[1], bytes(view[:5]) + put(b'from the child').encode())\n"
        "    os._exit(0)\n"
        "os.read(here[0], 100); del view"
    )
    writer.run(f"segments.forget([claim_of({claim!r})])")
    for _ in range(3):
        writer.run("put(b'b' * 100_000)")

    said = parent.run("os.write(there[1], b'x'); result = os.read(here[0], 1000).decode(); os.waitpid(pid, 0)")
    parent.run("put(b'by the parent')")

    assert said[:5] == "aaaaa"
    assert parent.run(f"result = bytes(get({said[5:]!r})).decode()") == "from the child"
    assert parent.run("result = bytes(get(put(b'still here'))).decode()") == "still here"


def test_a_forked_child_writes_to_a_folder_of_its_own_and_keeps_nothing_of_its_killed_parent(
    segments: Segments, start: Callable[[], Remote], root: Path
) -> None:
    parent = start()
    parent.run("segments.forget([claim_of(put(b'of the parent'))])")
    pid = parent.run(
        "import os, signal; ready = os.pipe()\n"
        "if (result := os.fork()) == 0:\n"
        "    os.write(ready[1], put(b'of the child').encode())\n"
        "    signal.pause()\n"
        "os.read(ready[0], 1000)"
    )
    try:
        assert len(list(root.glob("*/p/*"))) == 2

        parent.kill()
        segments.sweep(lambda names: [True] * len(names))

        assert len(list(root.glob("*/p/*"))) == 1
    finally:
        os.kill(pid, signal.SIGKILL)


def test_beyond_the_limit_there_is_no_room_until_a_value_is_gone(root: Path) -> None:
    segments = Segments(lambda: "epoch", limit=4 * MB, root=root)
    kept = [put(segments, b"x" * MB) for _ in range(3)]

    with pytest.raises(TierFull, match="bytes of QSERVE_SHM_LIMIT on this host are used"):
        put(segments, b"x" * 3 * MB)
    segments.forget(kept)

    assert bytes(segments.get(put(segments, b"y" * 3 * MB))[:1]) == b"y"  # idle segments of other sizes made room


def test_a_full_file_system_has_no_room_and_kills_nobody(tmp_path: Path) -> None:
    small = tmp_path / "shm"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        segments = Segments(lambda: "epoch", limit=1 << 30, root=small)
        claim = put(segments, b"x" * 2 * MB)
        with pytest.raises(TierFull):
            put(segments, b"y" * 3 * MB)

        assert bytes(segments.get(claim)) == b"x" * 2 * MB
        segments.forget([claim])
        segments.forget([put(segments, b"z" * 3 * MB)])
        segments.close()
        del segments
    finally:
        gc.collect()
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_segments_are_given_back_when_they_were_not_needed_for_a_while(
    segments: Segments, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = put(segments, b"x" * MB)
    del claim
    segments.forget([put(segments, b"y" * MB)])
    segments.trim()
    assert len([path for path in files_of_writers(root) if path.name.isdigit()]) == 2

    later = module.time.monotonic() + module.IDLE_S + 1
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    segments.trim()

    assert len([path for path in files_of_writers(root) if path.name.isdigit()]) == 1


@pytest.mark.slow
def test_a_process_that_reads_very_many_values_copies_some_and_keeps_its_descriptors(segments: Segments) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len([*Path("/proc/self/fd").iterdir()])
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + VIEWS_LIMIT + 20, hard))
    try:
        claims = [put(segments, b"%d" % number) for number in range(VIEWS_LIMIT + 100)]
        views = [segments.get(claim) for claim in claims]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert [bytes(view) for view in views] == [b"%d" % number for number in range(VIEWS_LIMIT + 100)]


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o770), lambda path: os.chown(path, 12345, -1)])
def test_a_folder_that_others_may_write_to_is_not_used(
    segments: Segments, root: Path, change: Callable[[Path], None]
) -> None:
    claim = put(segments, b"x")
    folder = next(root.glob("qserve-*"))
    try:
        change(folder)
    except PermissionError:
        pytest.skip("only root can give a folder to somebody else")
    another = Segments(lambda: "epoch", root=root)

    with pytest.raises(TierFull, match="is not a folder that belongs to this user alone"):
        put(another, b"x")
    with pytest.raises(ValueLost):
        another.get(claim)


def test_the_folder_of_an_embedded_broker_that_has_ended_is_removed_once_no_process_writes_there(
    root: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "ended", tmp_path / "runs", tmp_path / "in a container"]
    made = [Segments(lambda folder=folder: folder.name, str(folder), root=root) for folder in folders]  # type: ignore[misc]
    for segments in made:
        put(segments, b"x")
    put(Segments(lambda: "on a broker of its own", root=root), b"x")
    folders[1].mkdir()
    made[0].close()

    remove_abandoned(root=root)
    assert len(list(root.glob("qserve-*"))) == 3

    made[2].close()
    remove_abandoned(root=root)
    assert len(list(root.glob("qserve-*"))) == 2


@needs_root
def test_a_sweep_touches_nothing_behind_links_in_a_folder_that_another_user_has_made(
    segments: Segments, root: Path, tmp_path: Path
) -> None:
    folder = root / Path(put(segments, b"x").place).name
    shutil.rmtree(folder)
    precious = [tmp_path / "home" / "letters" / "text", tmp_path / "home" / ("0" * 32)]
    precious[0].parent.mkdir(parents=True)
    for path in precious:
        path.write_text("dear")
    root.chmod(0o1777)

    def attack() -> None:
        folder.mkdir(mode=0o755)
        (folder / "p").symlink_to(tmp_path / "home")
        (folder / "v").symlink_to(tmp_path / "home")

    as_second_user(attack, Path("/"))
    for _ in range(3):
        segments.sweep(nobody_knows)
    segments.forget([Claim(MEMORY, f"host/{'0' * 32}/{folder.name}", "0" * 32, 1, bytes(16))])

    assert [path.read_text() for path in precious] == ["dear"] * 2


def test_two_installations_on_a_host_do_not_sweep_each_others_values(root: Path) -> None:
    one, other = Segments(lambda: "one", root=root), Segments(lambda: "other", root=root)
    claim = put(one, b"x")
    one.settled([claim.name])

    for _ in range(3):
        other.sweep(nobody_knows)

    assert bytes(one.get(claim)) == b"x"


def test_what_is_stored_is_counted(segments: Segments) -> None:
    assert segments.stats()[:3] == ("memory", 0, 0)
    put(segments, b"x" * MB)

    _, count, size, oldest_s = segments.stats()

    assert count == 1
    assert MB <= size < 2 * MB
    assert 0 <= oldest_s < 600


def test_after_the_broker_has_lost_its_data_values_go_to_another_folder(root: Path) -> None:
    epochs = ["one"]
    segments = Segments(lambda: epochs[-1], root=root)
    before = put(segments, b"before")
    epochs.append("two")
    after = put(segments, b"after")

    assert before.place != after.place
    assert [bytes(segments.get(claim)) for claim in (before, after)] == [b"before", b"after"]
