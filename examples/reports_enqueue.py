"""Submit a call for each month, print its request id, and end: made for cron. See reports.py.

The program ends only when the broker has stored the calls. If that fails, it says which are not stored, and its exit
code is not 0.
"""

import qserve

MONTHS = ("May", "June", "September")

reports = qserve.get_app_handle("default")
calls = {month: reports.build.remote(month) for month in MONTHS}
qserve.accepted(list(calls.values()), timeout_s=10)  # a refusal is raised here, before an id is printed

for month, call in calls.items():
    print(month, call.request_id)
