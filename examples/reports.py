"""An application for reports_enqueue.py, a program that submits work and ends, and reports_fetch.py, which fetches it.

redis-server --port 6379 --appendonly yes --appendfsync always                   # any broker that outlives the programs
export QSERVE_BROKER_URL=redis://127.0.0.1:6379/0 QSERVE_SECRET_KEY=...          # the same for all of them
qserve run reports:app                    # in this folder; Ctrl-C stops it
python reports_enqueue.py > ids           # in a second terminal, or in cron
python reports_fetch.py < ids             # later, anywhere
"""

import qserve


@qserve.deployment
class Reports:
    """Stands for something that takes long."""

    def build(self, month: str) -> dict[str, object]:
        """Build the report of one month."""
        return {"month": month, "pages": 2 * len(month)}


app = Reports.bind()
