"""New versions, good and broken, and starts that go wrong: what serves goes on serving."""

from __future__ import annotations

from invariants import check
from ledger import DIAMOND
from load import Load
from processes import Process, Site, is_alive, wait_until
from rows import row
from stacks import Stack, children_of, kill


@row("F20")
def test_a_new_version_takes_over_under_load_without_one_failed_request(stack: Stack) -> None:
    load, by_http = stack.load(), Load(stack.http(), rate=50).start()
    load.more(100)
    wanted = 3 * stack.replicas_wanted
    fewest = wanted
    stack.write_app(version=2)

    with load.fault():
        deploying = stack.deploy()
        while deploying.exit_code() is None:
            fewest = min(fewest, len(stack.replicas()))
        assert deploying.exit_code() == 0, deploying.output
        wait_until(
            lambda: any(call.answer and call.answer["versions"] == [2, 2, 2] for call in by_http.calls),
            description="the gateway has switched over",
        )
    load.more(100)
    calls, answers = load.stop(), by_http.stop()

    assert [call for call in answers if call.status != 200] == []
    assert all(call.is_right for call in calls)
    versions = {tuple(call.answer["versions"]) for call in [*calls, *answers]}
    assert versions == {(1, 1, 1), (2, 2, 2)}
    assert calls[-1].answer["versions"] == [2, 2, 2]
    assert fewest >= wanted
    check(stack, [*calls, *answers], load=load, reruns=0)


BROKEN = {
    "import error": ("import qserve\n", "import no_such_module\nimport qserve\n", "No module named 'no_such_module'"),
    "syntax error": ("VERSION = 1\n", "VERSION = = 1\n", "SyntaxError"),
    "constructor": (
        "class Left:\n",
        "class Left:\n    def __init__(self):\n        raise OSError('no such disk')\n\n",
        "OSError: no such disk",
    ),
}


@row("F35")
def test_a_broken_version_is_refused_with_its_error_and_the_old_one_serves(stack: Stack) -> None:
    load, by_http = stack.load(), Load(stack.http(), rate=25).start()
    load.more(50)

    with load.fault():
        for old, new, said in BROKEN.values():
            assert old in DIAMOND
            stack.write_app(version=2, text=DIAMOND.replace(old, new))
            deploying = stack.deploy()
            assert deploying.wait() != 0
            assert said in deploying.stderr
    stack.write_app()
    load.more(50)
    calls, answers = load.stop(), by_http.stop()

    assert all(call.status == 200 for call in answers), [call for call in answers if call.status != 200][:3]
    assert {tuple(call.answer["versions"]) for call in [*calls, *answers]} == {(1, 1, 1)}
    check(
        stack,
        [*calls, *answers],
        load=load,
        reruns=0,
        may_log=["no such disk", "cannot be loaded", "Error", "Left can be started"],
    )


HELLO = """
import qserve

@qserve.deployment
class Hello:
    def __call__(self):
        return "hi"

app = Hello.bind()
"""


def run_embedded(site: Site) -> Process:
    """Start everything on one machine, with a broker of its own."""
    site.write("hello.py", HELLO)
    serving = site.run("hello:app", cwd=site.folder)
    return serving.process


@row("F44")
def test_an_embedded_broker_ends_with_its_owner_and_no_child_removes_its_data(site: Site) -> None:
    process = run_embedded(site)
    (folder,) = site.broker_folders()
    data = site.folder / folder
    (broker,) = [pid for pid, command in site.processes().items() if "valkey-server" in command]
    supervisors = [pid for pid, command in site.processes().items() if "qserve worker" in command]
    for pid in [child for one in supervisors for child in children_of(one)]:
        kill(pid)
    wait_until(lambda: (data / "appendonlydir").is_dir(), description="the append-only file is there")
    assert is_alive(broker)

    kill(process.pid)

    wait_until(lambda: not is_alive(broker), description="the broker has ended")
    wait_until(lambda: not site.processes(), description="no process is left")
    assert (data / "appendonlydir").is_dir(), "the data of a killed owner are gone"
    again = run_embedded(site)
    assert not data.exists(), "the data of the owner before are still there"
    again.press_ctrl_c()
    assert again.wait() == 0
