"""Read months and request ids, as reports_enqueue.py has printed them, and print the reports. See reports.py."""

import sys

import qserve

for line in sys.stdin:
    month, request_id = line.split()
    print(month, qserve.get_ref(request_id).result(timeout_s=30)["pages"])
