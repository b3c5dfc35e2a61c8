"""The Celery application of the broker that the environment names.

``celery -A qserve_workers.app inspect ping`` reaches its replicas.
"""

from __future__ import annotations

from qserve.base.settings import Settings
from qserve_workers.celery.app import make_celery

app = make_celery(Settings.from_env())
