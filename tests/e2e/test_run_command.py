"""``qserve run``: what it prints, how it ends, and that nothing is left of it then."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from http_client import Client
from processes import PATIENCE_S, QSERVE, READY, Process, Serving, Site, free_port, is_open, new_site, wait_until

from qserve.broker.connection import connect

APP = """
import os
import qserve

@qserve.deployment
class Model:
    def __call__(self):
        return "here"

@qserve.deployment
class Front:
    def __init__(self, model):
        self.model = model

    async def __call__(self, request):
        return await (await self.model.remote())

app = Front.bind(Model.bind())
"""


def run_app(site: Site, *options: str) -> Serving:
    return site.run("shop:app", *options, cwd=site.write("shop.py", APP))


def error_of(process: Process, site: Site) -> list[str]:
    """Wait for the failure, see that it is a clean one, and answer the lines that say why."""
    assert process.wait() == 1, process.output
    site.wait_empty()
    return [line for line in process.problems.splitlines() if line.strip()]


@pytest.mark.long  # tests/gateway/test_access.py has both
def test_the_gateways_token_is_asked_for_and_kept_from_user_code(site: Site) -> None:
    port = free_port()
    program = """
import os, qserve

print("imported with", os.environ.get("QSERVE_API_TOKEN"))

@qserve.deployment
def shown(request):
    return [os.environ.get("QSERVE_API_TOKEN", ""), request.headers.get("authorization", "")]

app = shown.bind()
"""
    process = site.qserve(
        "run", "told:app", "--port", str(port), cwd=site.write("told.py", program), env={"QSERVE_API_TOKEN": "s3cret"}
    )
    process.wait_for("qserve: ready")
    client = Client(port)
    assert client.get(Authorization="Bearer s3cret").json == ["", ""]
    assert client.get().status == 401
    assert "imported with" in process.output
    assert "s3cret" not in process.output


# -- what it prints, and how it ends ---------------------------------------------------------------


def terminate(process: Process) -> None:
    process.signal(signal.SIGTERM)


# a start that is interrupted has both signals as well
@pytest.mark.parametrize("end", [Process.press_ctrl_c, pytest.param(terminate, marks=pytest.mark.long)])
def test_run_prints_its_progress_and_where_it_answers_and_ctrl_c_and_sigterm_end_everything(
    site: Site, end: Callable[[Process], None]
) -> None:
    serving = run_app(site)
    said = serving.process.stdout
    lines = [line.split() for line in said.splitlines()]
    for name in ("Model", "Front"):
        assert [name, "0/1", "starting"] in lines
        assert [name, "1/1", "ready"] in lines
    assert f"{serving.url}/" in said.splitlines()[-1]
    assert serving.process.problems == ""
    assert Client(serving.url).get().text == "here"

    end(serving.process)

    assert serving.process.wait() == 0, serving.process.output
    site.wait_empty()
    assert not is_open(serving.port)
    assert "Traceback" not in serving.process.output


@pytest.mark.long  # the first one and an interrupted start are above and below
def test_an_impatient_second_ctrl_c_leaves_nothing_behind_either(site: Site) -> None:
    serving = run_app(site)

    serving.process.press_ctrl_c()
    serving.process.wait_for("stopping")
    serving.process.press_ctrl_c()

    assert serving.process.wait() == 0, serving.process.output
    site.wait_empty()
    assert "Traceback" not in serving.process.output


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("0/1 starting", signal.SIGTERM),
        # both signals take the same way, which test_run_prints_its_progress has for each
        pytest.param("qserve: starting", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("qserve: starting", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("0/1 starting", signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_an_interrupted_start_leaves_nothing_behind(site: Site, moment: str, number: int) -> None:
    folder = site.write("shop.py", APP)
    process = site.qserve("run", "shop:app", "--port", str(free_port()), cwd=folder)

    process.wait_for(moment)
    process.signal(number)

    process.wait()
    site.wait_empty()
    assert "Traceback" not in process.output


@pytest.mark.long  # as an interrupted start, above
def test_ctrl_c_does_not_wait_for_a_constructor_that_hangs(site: Site) -> None:
    slow = "import time, qserve\n\n@qserve.deployment\nclass Slow:\n    def __init__(self):\n"
    folder = site.write("slow.py", f"{slow}        time.sleep(600)\n\napp = Slow.bind()\n")
    process = site.qserve("run", "slow:app", "--port", str(free_port()), cwd=folder)
    process.wait_for("0/1 starting")
    wait_until(lambda: len(site.processes()) >= 7, description="the replica is being constructed")

    process.press_ctrl_c()

    process.wait()
    site.wait_empty()


def test_a_killed_run_leaves_no_process(site: Site) -> None:
    serving = run_app(site)

    serving.process.signal(signal.SIGKILL)

    serving.process.wait()
    wait_until(lambda: not site.processes(), description=f"no orphans, not {site.processes()}")
    assert not is_open(serving.port)
    for folder in site.broker_folders():  # with the last process gone, nobody is left to remove it
        (site.folder / folder).rename(site.folder / f"left-{folder}")


# -- what can be wrong -----------------------------------------------------------------------------


@pytest.mark.row("F35")
@pytest.mark.long  # tests/cli/test_loading.py has the words
def test_a_module_that_does_not_import_shows_the_users_traceback(site: Site) -> None:
    folder = site.write("broken.py", "import qserve\n\nimport numpy_but_misspelt\n")
    process = site.qserve("run", "broken:app", "--port", str(free_port()), cwd=folder)

    *trace, line = error_of(process, site)
    assert line.startswith("Error: broken:app cannot be loaded: ")
    assert "numpy_but_misspelt" in line
    assert not [said for said in trace if said.startswith("Error:")], "it was started again"
    shown = [said for said in trace if said.startswith("  File ")]
    assert len(shown) == 1, trace
    assert f'"{folder}/broken.py", line ' in shown[0]


@pytest.mark.long  # tests/local/test_graph_errors.py has it in full
def test_a_constructor_that_raises_shows_the_users_traceback(site: Site) -> None:
    source = "import qserve\n\n@qserve.deployment\nclass Model:\n    def __init__(self, path):\n"
    source += "        open(path)\n\napp = Model.bind('/no/such/file')\n"
    folder = site.write("broken.py", source)
    process = site.qserve("run", "broken:app", "--port", str(free_port()), cwd=folder)

    lines = error_of(process, site)
    assert "Error: deployment 'Model' could not be started; its constructor failed:" in lines
    assert sum("broken.py" in line for line in lines) == 1
    assert lines[-1].endswith("No such file or directory: '/no/such/file'")
    shown = [line for line in lines if line.startswith("  File ")]
    assert len(shown) == 1, lines


@pytest.fixture(scope="module")
def workers_of_any() -> Iterator[tuple[Site, dict[str, str]]]:
    """Workers that run whatever is deployed to their broker, and what a deploy must be told."""
    with new_site() as site:
        env = {"QSERVE_BROKER_URL": site.broker(), "QSERVE_SECRET_KEY": "the-key-of-this-test"}
        site.qserve("worker", env=env)
        yield site, env


@pytest.mark.slow
@pytest.mark.row("F35")
@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("ends", "        os._exit(3)", "its process ended while it was starting: exit code 3: its user code"),
        ("killed", "        os.kill(os.getpid(), 11)", "its process ended while it was starting: SIGSEGV"),
        ("exits", "        sys.exit(0)", "its constructor failed:"),
        (
            "imports",
            "        pass\nif 'worker' in sys.orig_argv:\n    import elsewhere",
            "imports:app could not be imported:",
        ),
        ("fails", "        pass\n    def reconfigure(self, config):\n        1 / 0", "its reconfigure failed:"),
    ],
)
def test_a_replica_that_cannot_start_is_told_with_its_own_cause(
    workers_of_any: tuple[Site, dict[str, str]], module: str, source: str, said: str
) -> None:
    site, env = workers_of_any
    options = "(user_config={'a': 1})" if "reconfigure" in source else ""
    program = f"import os, sys, qserve\n@qserve.deployment{options}\nclass Model:\n    def __init__(self):\n{source}\n"
    site.write(f"{module}.py", f"{program}\napp = Model.bind()\n")

    deploy = site.qserve("deploy", f"{module}:app", "--name", module, "--route-prefix", f"/{module}", env=env)

    assert deploy.wait() == 1, deploy.output
    lines = deploy.stderr.splitlines()
    assert any(line.startswith(f"Error: deployment 'Model' could not be started; {said}") for line in lines), lines


@pytest.mark.long  # tests/gateway/test_gateway.py has when it is healthy
def test_the_gateway_is_not_ready_before_all_constructors_are_done(site: Site) -> None:
    port, go = free_port(), site.folder / "go"
    program = "import os, time, qserve\n@qserve.deployment\nclass Model:\n    def __init__(self):\n"
    program += f"        while not os.path.exists({str(go)!r}):\n            time.sleep(0.01)\n"
    folder = site.write("slow.py", f"{program}    def __call__(self, request):\n        return 1\napp = Model.bind()\n")
    process = site.qserve("run", "slow:app", "--port", str(port), cwd=folder)
    process.wait_for("0/1 starting")
    client = Client(port)

    wait_until(client.is_up, description="the gateway works", timeout_s=PATIENCE_S)
    assert (client.get("/-/healthz").status, client.get("/-/healthz").code) == (503, "no_application")
    assert "qserve: ready" not in process.stdout

    go.write_text("")
    wait_until(client.is_healthy, description="the gateway is ready", timeout_s=PATIENCE_S)
    assert client.get().status == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "nohost.invalid"], "nohost.invalid:"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:"),
    ],
)
def test_a_host_that_is_not_of_this_machine_is_named_in_one_line(site: Site, options: list[str], said: str) -> None:
    folder = site.write("shop.py", APP)
    process = site.qserve("run", "shop:app", "--port", str(free_port()), *options, cwd=folder)

    (line,) = error_of(process, site)
    assert said in line
    assert line.endswith("name an address of this machine with --host")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        # tests/base/test_settings.py has what each of them may be, and what every command says of it
        pytest.param("QSERVE_ALLOWED_HOSTS", " ,", marks=pytest.mark.long),
        pytest.param("QSERVE_CLIENT_IN_FLIGHT", "few", marks=pytest.mark.long),
        pytest.param("QSERVE_LEASE_S", "1e300", marks=pytest.mark.long),
    ],
)
def test_a_variable_that_is_not_valid_is_named_in_one_line_whoever_reads_it(
    site: Site, variable: str, value: str
) -> None:
    folder = site.write("shop.py", APP)
    process = site.qserve("run", "shop:app", "--port", str(free_port()), cwd=folder, env={variable: value})

    (line,) = error_of(process, site)
    assert f"{variable}={value!r}" in line


def test_a_port_in_use_is_named_in_one_line(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        folder = site.write("shop.py", APP)
        process = site.qserve("run", "shop:app", "--port", str(port), cwd=folder)

        lines = error_of(process, site)
    assert len(lines) == 1, lines
    assert f"127.0.0.1:{port}" in lines[0]
    assert "in use; choose another port with --port" in lines[0]


def test_a_broker_that_cannot_be_reached_is_named_in_one_line(site: Site) -> None:
    port = free_port()
    folder = site.write("shop.py", APP)
    url = f"redis://:geheim@127.0.0.1:{port}/0"
    process = site.qserve("run", "shop:app", "--port", str(free_port()), "--broker", url, cwd=folder)

    (line,) = error_of(process, site)
    assert line.startswith(f"Error: the broker at 127.0.0.1:{port}/0 cannot be reached")
    assert "geheim" not in process.stdout + process.stderr


def test_a_broker_url_of_no_known_kind_is_refused_in_one_line(site: Site) -> None:
    folder = site.write("shop.py", APP)
    process = site.qserve("run", "shop:app", "--port", str(free_port()), "--broker", "amqp://localhost", cwd=folder)

    (line,) = error_of(process, site)
    assert line.startswith("Error: ")
    assert "redis://" in line


# -- its options -----------------------------------------------------------------------------------


def test_each_option_reaches_the_process_that_obeys_it_and_a_target_may_be_dotted(site: Site) -> None:
    package = site.folder / "code" / "package"
    package.mkdir(parents=True)
    (package.parent / "helper.py").write_text("WORD = 'helped'\n")
    source = "import time\nimport helper\nimport qserve\n\n@qserve.deployment\ndef app(request):\n"
    source += "    if 'slow' in request.query_params:\n        time.sleep(5)\n"
    source += "    return helper.WORD if 'good' in request.query_params else 1 / 0\n\nnode = app.bind()\n"
    (package / "shop.py").write_text(source)
    options = ["--app-dir", "code", "--host", "127.0.0.2", "--route-prefix", "/shop", "--workers", "2"]
    options += ["--request-timeout-s", "2", "--show-errors"]

    serving = site.run("package.shop.node", *options, cwd=site.folder)

    there = Client(f"http://127.0.0.2:{serving.port}")
    assert f"{there.url}/shop" in serving.process.stdout
    assert {there.get("/shop?good=1").text for _ in range(10)} == {"helped"}
    assert not is_open(serving.port, "127.0.0.1")
    assert there.get().status == 404
    gateways = [name for name in site.processes().values() if "qserve gateway" in name]
    assert len(gateways) == 1 + 2
    answer = there.get("/shop")
    assert answer.status == 500
    assert "return helper.WORD if 'good' in request.query_params else 1 / 0" in answer.text
    assert there.get("/shop?slow=1").status == 504


@pytest.mark.long  # tests/e2e/test_roles.py has processes that call and show the application of others
def test_broker_and_name_let_other_processes_call_the_application_and_see_its_status(site: Site) -> None:
    broker = site.broker()
    serving = run_app(site, "--broker", broker, "--name", "shop")
    ask = "import qserve; print(qserve.get_deployment_handle('Model', 'shop').remote().result())"

    caller = site.start([sys.executable, "-c", ask], env={"QSERVE_BROKER_URL": broker})
    told = site.qserve("status", "--broker", broker, "--json")
    finders = [site.start([sys.executable, "-c", ask]), site.qserve("status"), site.qserve("dlq", "list")]

    assert caller.wait() == 0, caller.output
    assert (caller.stdout, caller.stderr) == ("here\n", "")
    assert told.wait() == 0, told.output
    application = json.loads(told.stdout)["applications"]["shop"]
    assert application["status"] == "RUNNING"
    assert application["deployments"]["Front"]["status"] == "HEALTHY"
    assert told.stderr == ""
    for finder, said in zip(finders, ("here", "shop  RUNNING", "there are no dead letters"), strict=True):
        assert finder.wait() == 0, finder.output
        assert said in finder.stdout
        assert finder.stderr == f"qserve: using the run of shop:app (pid {serving.process.pid}, {serving.url})\n"
    assert not list(site.folder.glob("qserve-*/broker.sock"))
    assert Client(serving.url).get().text == "here"


def test_help_says_what_run_does_without_starting_anything(site: Site) -> None:
    process = site.qserve("run", "--help")

    assert process.wait() == 0
    for option in ("--host", "--port", "--route-prefix", "--name", "--app-dir", "--broker"):
        assert option in process.stdout


# -- the embedded broker's memory ------------------------------------------------------------------

LARGE = """
import qserve

@qserve.deployment(max_concurrent_queries=1)
def large(request):
    return "x" * int(request.query_params["size"])

app = large.bind()
"""


@pytest.mark.row("F31")
@pytest.mark.long  # tests/broker has which results are kept, and from how much memory on
def test_results_that_nobody_fetches_do_not_fill_the_embedded_broker(site: Site) -> None:
    # results that are stored beside the messages are kept in the memory of the host, which has a limit of its own
    port, env = free_port(), {"QSERVE_BROKER_MAXMEMORY": "32mb", "QSERVE_PAYLOAD_THRESHOLD": "10mb"}
    run = site.qserve("run", "large:app", "--port", str(port), cwd=site.write("large.py", LARGE), env=env)
    run.wait_for("qserve: ready")
    client = Client(port)
    (folder,) = site.broker_folders()
    asked = [client.get("/?size=4300000", Prefer="respond-async") for _ in range(40)]
    places = [answer.headers["location"] for answer in asked if answer.status == 202]
    ends = [client.get(place, Prefer="wait=30") for place in places]
    # in half of 32 MB there is room for three of them; the others were delivered to nobody, and say so
    whole = [answer for answer in ends if answer.status == 200]
    assert [len(answer.body) for answer in whole] == [4_300_000] * 3
    others = {(answer.status, answer.error["code"]) for answer in ends if answer.status != 200}
    assert others <= {(410, "result_unavailable")}
    with closing(connect(f"unix://{site.folder / folder}/broker.sock")) as broker:
        wait_until(
            lambda: broker.info("memory")["used_memory"] < broker.info("memory")["maxmemory"] == 32 << 20,
            description="the buffers of its connections are gone",
        )
        refused = client.get("/?size=4300000", Prefer="respond-async")
        answer = client.get("/?size=4300000")
        assert (answer.status, len(answer.body)) == (200, 4_300_000)

        broker.config_set("maxmemory", 1 << 20)
        full = client.get("/?size=1")
        broker.config_set("maxmemory", 32 << 20)
    for one in (refused, full):
        assert (one.status, one.error["code"], one.error["retryable"]) == (503, "broker_full", True)
        assert "retry-after" in one.headers
        assert "QSERVE_BROKER_MAXMEMORY" in one.error["message"]
    assert "take a quarter of the memory" in refused.error["message"]
    assert "the broker is full" in full.error["message"]


# -- deploying again -------------------------------------------------------------------------------


@pytest.mark.slow
def test_reload_deploys_what_has_changed_in_place_and_goes_on_with_the_old_where_that_fails(site: Site) -> None:
    folder, port = site.write("shop.py", APP), free_port()
    env = {"QSERVE_PORT": f"127.0.0.1:{port}"}  # as docker compose takes it
    process = site.qserve("run", "shop:app", "--reload", cwd=folder, env=env)
    process.wait_for("qserve: ready")
    client = Client(port)
    assert client.get().text == "here"

    site.write("notes.txt", "nothing")
    site.write("shop.py", APP.replace("here", "there"))
    wait_until(lambda: client.get().text == "there", description="the new code answers")
    process.wait_for("qserve: shop.py changed; deploying again")
    site.write("shop.py", APP + "syntax(")
    process.wait_for("SyntaxError")
    assert client.get().text == "there"
    assert "notes.txt" not in process.output
    process.press_ctrl_c()
    assert process.wait() == 0, process.output


@pytest.mark.slow
def test_what_init_writes_is_served_and_answers_with_the_new_text_after_an_edit(site: Site) -> None:
    init = site.qserve("init", "shop")
    assert init.wait() == 0, init.output
    folder, port = site.folder / "shop", free_port()
    *_, serve = init.stdout.splitlines()
    process = site.start([*QSERVE, *serve.split()[1:], "--port", str(port)], cwd=folder)
    process.wait_for(READY)
    client, dora = Client(port), {"name": "Dora"}
    assert json.loads(client.post("/", dora).body) == ["Hola Dora", "Bonjour Dora"]

    hello = folder / "hello.py"
    hello.write_text(hello.read_text().replace("Bonjour", "Salut"))

    wait_until(lambda: "Salut Dora" in client.post("/", dora).text, description="the new text answers")


@pytest.mark.slow
@pytest.mark.parametrize("port", ["127.0.0.1:x", "70000"])
def test_a_port_that_is_not_one_is_refused_by_the_name_of_its_variable(site: Site, port: str) -> None:
    process = site.qserve("run", "shop:app", cwd=site.write("shop.py", APP), env={"QSERVE_PORT": port})

    assert process.wait() == 2
    assert process.stderr.startswith("Error: QSERVE_PORT: ")
