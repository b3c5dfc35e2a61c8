"""Start Ray Serve, or deploy the application again on a running one.

python ray_main.py start PORT FILE     FILE gets the address of the cluster; runs until it is ended
python ray_main.py deploy ADDRESS
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import ray  # type: ignore[import-not-found]
import ray_app  # type: ignore[import-not-found]
from ray import serve

if sys.argv[1] == "start":
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(ray_app.chain)
    Path(sys.argv[3]).write_text(ray.get_runtime_context().gcs_address)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
else:
    ray.init(address=sys.argv[2])
    serve.run(ray_app.chain)
