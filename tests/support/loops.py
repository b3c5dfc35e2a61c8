"""The loops of a process, and the turns of those that must live.

Each place in which work begins that goes on by itself is here, with the turns that a test makes fail, or with why an
error cannot end it.
"""

from __future__ import annotations

_W = "qserve_workers"
SUPERVISOR = tuple(
    f"{_W}.supervisor.{name}"
    for name in (
        "supervisor:Supervisor.tick",
        "supervisor:Supervisor._read_applications",
        "supervisor:Supervisor._offer_places",
        "supervisor:Supervisor._reap",
        "supervisor:Supervisor._on_death",
        "supervisor:Supervisor._start_missing",
        "supervisor:Supervisor._stop_some",
        "supervisor:Supervisor._kill_late",
        "supervisor:Supervisor._sweep",
        "scope:Applications._read",
        "scope:Applications.wait_for_change",
        "takeover:Takeover.wake",
        "supervisor:Supervisor._is_retired",
        "takeover:Takeover._add_consumers",
        "takeover:Takeover._hand_over_all",
        "takeover:Takeover.look",
    )
)
LEADER = ("qserve.fleet.leader:Leader.tick",)
HEARTBEAT = (f"{_W}.process.heartbeat:Heartbeat.beat",)
WATCHDOG = (f"{_W}.replica.watchdog:Watchdog._check", f"{_W}.replica.watchdog:Watchdog._check_call")
CONTROL = (f"{_W}.celery.worker:RemoteControl._answer_next",)
READER = (
    f"{_W}.replica.reader:StreamReader._ask",
    f"{_W}.replica.reader:StreamReader._prepare",
    f"{_W}.replica.reader:StreamReader._accept_each",
)
MODELS = (f"{_W}.replica.models:ModelAdvertiser._send_models",)
MAILBOX = ("qserve.calls.mailbox:Mailbox._read_once", "qserve.calls.mailbox:Mailbox._check_deadlines")
LIFECYCLE = (
    f"{_W}.process.lifecycle:Lifecycle.report_running",
    f"{_W}.process.lifecycle:Lifecycle._read_options",
)
HEALTH = (f"{_W}.process.lifecycle:Lifecycle._may_leave",)
TURNS = (
    *SUPERVISOR, *LEADER, *HEARTBEAT, *WATCHDOG, *CONTROL, *READER, *MODELS, *MAILBOX, *LIFECYCLE, *HEALTH,
)  # fmt: skip
"""Turns that `tests/faults/test_loops.py` makes fail in a real worker, as ``module:Class.method``."""

_ENDS = "it ends by itself: an error reaches who waits for it"
_CALL = "it is one call of user code, and what that raises is the result"
LOOPS: dict[str, tuple[str, ...] | str] = {
    "qserve.base.entry:enter": _CALL,
    "qserve.base.loop_at_hand:_LoopInThread.run_until_complete": _CALL,
    "qserve.base.failpoints:_hang": "it is there to hang",
    "qserve.calls.client:ClientPlane._start_threads": "its test is in tests/workers/test_planes.py",
    "qserve.calls.client:ClientPlane._read_mailbox": MAILBOX,
    "qserve.calls.events:Events.__aiter__": _ENDS,
    "qserve.calls.events:Events._wait_for_each": _ENDS,
    "qserve.calls.mailbox:Mailbox.read": MAILBOX,
    "qserve.cli.delete:_wait_until_gone": _ENDS,
    "qserve.cli.deploy:wait_for_broker": _ENDS,
    "qserve.cli.drain:drain": _ENDS,
    "qserve.cli.logs:_polled": "Ctrl-C ends it",
    "qserve.cli.scale:_wait": _ENDS,
    "qserve.cli.top:_show": "Ctrl-C or q ends it",
    "qserve.cli.top:_with_rates": _ENDS,
    "qserve.cli.top:top": "Ctrl-C ends it",
    "qserve.define.batching:_Item.result": _ENDS,
    "qserve.define.batching:_Queue._start": _CALL,
    "qserve.define.batching:_Queue._start_ready": "its test is in tests/define/test_batching.py",
    "qserve.define.compile:Numbering.take": _ENDS,
    "qserve.define.multiplexing:_Models._reserve": _ENDS,
    "qserve.define.multiplexing:_Models.get": _ENDS,
    "qserve.deploy.log_tail:LogTail._run": "its test is in tests/deploy/test_log_tail.py",
    "qserve.deploy.log_tail:LogTail.start": "its test is in tests/deploy/test_log_tail.py",
    "qserve.deploy.claim:Claim.__enter__": _ENDS,
    "qserve.deploy.claim:Claim._beat": "its test is in tests/deploy/test_claim.py",
    "qserve.deploy.rollout:wait_until_running": _ENDS,
    "qserve.deploy.steps:Start._until": _ENDS,
    "qserve.engine.invoke:Invoker._beside": "one value at a time; what it raises ends its call",
    "qserve.engine.invoke:Invoker._conclude_beside": _CALL,
    "qserve.engine.invoke:Invoker._commit": "a background task of a response, whose error is logged",
    "qserve.engine.invoke:Invoker._run_next": _ENDS,
    "qserve.engine.invoke:Invoker._spawn": _CALL,
    "qserve.engine.invoke:UserThread.__init__": _CALL,
    "qserve.engine.invoke:run_loop": "it ends with the replica, and with any error but those that it logs",
    "qserve.local.plane:LocalPlane.__init__": "its test is in tests/local/test_local_mode.py",
    "qserve.local.plane:LocalPlane._watch_deadlines": "its test is in tests/local/test_local_mode.py",
    "qserve.local.run:_Instance.__init__": _CALL,
    "qserve.local.run:_Version.retire": _ENDS,
    "qserve.machine.children:Restarter.begin": "its test is in tests/machine/test_children.py",
    "qserve.machine.children:Restarter._run": "its test is in tests/machine/test_children.py",
    "qserve.machine.private_folder:PrivateFolder.__init__": _ENDS,
    "qserve.machine.local_cluster:LocalCluster.wait": "it ends by design, with what the restarter has given up",
    "qserve.tracing.start:close": _ENDS,
    "qserve.web.asgi:Exchange.answer": _CALL,
    "qserve.web.asgi:Exchange.leave": _ENDS,
    "qserve.web.asgi:Lifespan.start": _CALL,
    "qserve.web.asgi:StreamedResponse.__call__": _ENDS,
    "qserve.web.websocket:WebSocketConversation.run": _CALL,
    "qserve.web.wsgi:_Call._write": _CALL,
    "qserve_gateway.admin.application:AdminApi._delete": "its errors are logged for each application",
    "qserve_gateway.admin.deploys:Deploys.start": "how it ends is shown by GET, whatever it raises",
    "qserve.metrics.totals:Channel.receive": "its test is in tests/metrics/test_totals.py",
    "qserve_gateway.handler:RequestHandler._take_room": _ENDS,
    "qserve_gateway.metrics:Page.facts": "its test is in tests/gateway/test_metrics_page.py",
    "qserve_workers.supervisor.page:_Scrape.go_on": _ENDS,
    "qserve_workers.supervisor.values:_sweep_folders": "its test is in tests/workers/test_value_sweep.py",
    "qserve_gateway.request.json_process:main": "the gateway starts another when it has ended",
    "qserve_gateway.response.events:Events._events": _ENDS,
    "qserve_gateway.response.reply:StreamReply._wait": _ENDS,
    "qserve_gateway.response.session:Session._tell": "it ends with the session: an error closes that",
    "qserve_gateway.response.session:Session._watch": "it ends with the session, which a replica that misses it ends",
    "qserve_gateway.ui.feed:Feed.enter": "its test is in tests/ui/test_page.py",
    "qserve_gateway.ui.feed:Feed._read": "its test is in tests/ui/test_page.py",
    "qserve_gateway.routes:RouteWatcher.run": "its test is in tests/gateway/test_gateway.py",
    "qserve_gateway.routes:RouteWatcher.start": "its test is in tests/gateway/test_gateway.py",
    "qserve_gateway.webhooks:Webhooks.look": "its test is in tests/e2e/test_webhooks.py",
    "qserve_gateway.webhooks:Webhooks.send_due": "its test is in tests/e2e/test_webhooks.py",
    "qserve_workers.celery.worker:CallLoop.start": "it is the replica: its end is the end of the process",
    "qserve_workers.celery.worker:RemoteControl.start": CONTROL,
    "qserve_workers.celery.worker:RemoteControl._serve": CONTROL,
    "qserve_workers.command:_wait_for_broker": _ENDS,
    "qserve_workers.process.boot:_end_with": "it calls nothing that can raise, and the kernel ends the process too",
    "qserve_workers.process.boot:run_replica": "it ends the process",
    "qserve_workers.process.heartbeat:Heartbeat._run": HEARTBEAT,
    "qserve_workers.process.heartbeat:Heartbeat.start": HEARTBEAT,
    "qserve_workers.process.lifecycle:Lifecycle._spawn": (*LIFECYCLE, *HEALTH),
    "qserve_workers.process.lifecycle:Lifecycle._until_done": LIFECYCLE,
    "qserve_workers.process.lifecycle:Lifecycle._watch_health": HEALTH,
    "qserve_workers.process.lifecycle:Lifecycle._watch_stats": "the next heartbeat has the numbers as well",
    "qserve_workers.replica.models:ModelAdvertiser._plan_next": MODELS,
    "qserve_workers.replica.lasting_link:LastingLink._check_silence": "it plans the next check first",
    "qserve_workers.replica.lasting_link:LastingLink._on_lost": "it plans the next try first",
    "qserve_workers.replica.lasting_link:LastingLink._open_again": READER,
    "qserve_workers.replica.plane:LoopPlane._end_long_read": "a read that is not ended ends by itself",
    "qserve_workers.replica.emitter:Emitter.send": _ENDS,
    "qserve_workers.replica.plane:LoopPlane._read_mailbox": MAILBOX,
    "qserve_workers.replica.plane:LoopPlane._send_later": "its test is in tests/workers/test_planes.py",
    "qserve_workers.replica.plane:LoopPlane._start_reader": MAILBOX,
    "qserve_workers.replica.session:SessionWire.__init__": "it plans the next check first",
    "qserve_workers.replica.session:SessionWire._check_gateway": "it plans the next check first",
    "qserve_workers.replica.session:SessionWire.hear": _ENDS,
    "qserve_workers.replica.reader:StreamReader._end_read_while_held": "a read that is not ended is the last one",
    "qserve_workers.replica.reader:StreamReader._pause": READER,
    "qserve_workers.replica.replica:Replica._end_calls": "it looks once, and plans no further look",
    "qserve_workers.replica.replica:Replica.run": READER,
    "qserve_workers.replica.watchdog:Watchdog.start": WATCHDOG,
    "qserve_workers.replica.watchdog:Watchdog._watch": WATCHDOG,
    "qserve_workers.supervisor.supervisor:Supervisor.run": (*SUPERVISOR, *LEADER),
    "qserve_workers.supervisor.supervisor:Supervisor._wait": SUPERVISOR,
    "qserve_workers.tasks.task:TaskCalls.result": _ENDS,
}
