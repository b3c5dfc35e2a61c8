"""The Celery application of the broker that the environment names.

``celery -A qserve_workers.app inspect ping`` reaches its replicas.
"""

from __future__ import annotations

from qserve.base.settings import Settings
from qserve.exceptions import QserveException
from qserve_workers.celery.app import make_celery

try:
    app = make_celery(Settings.from_env())
except QserveException as error:  # Celery's command would print a traceback
    raise SystemExit(f"Error: {error}") from error
