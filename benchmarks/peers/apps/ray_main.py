"""Start Ray Serve, or deploy an application again on a running one.

python ray_main.py MODULE:APPLICATION start PORT FILE     FILE gets the address of the cluster; runs until it is ended
python ray_main.py MODULE:APPLICATION deploy ADDRESS
"""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

import ray  # type: ignore[import-not-found]
from ray import serve

target, act, *rest = sys.argv[1:]
module, _, name = target.partition(":")
application = getattr(importlib.import_module(module), name)
if act == "start":
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(rest[0])})
    serve.run(application)
    Path(rest[1]).write_text(ray.get_runtime_context().gcs_address)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
else:
    ray.init(address=rest[0])
    serve.run(application)
