"""Local mode: an application in this process, run by the same engine, without a broker.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.tracing, qserve.calls, qserve.define,
qserve.engine and qserve.deploy.
Open first: run.py.
"""

from qserve.local.run import delete_local, run_local, shutdown_local

__all__ = ["delete_local", "run_local", "shutdown_local"]
