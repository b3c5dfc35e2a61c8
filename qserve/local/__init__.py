"""Local mode: an application in this very process, run by the same engine, without a broker.

May import everything below ``api``. Start with ``run.py``.
"""

from qserve.local.run import delete_local, run_local, shutdown_local

__all__ = ["delete_local", "run_local", "shutdown_local"]
