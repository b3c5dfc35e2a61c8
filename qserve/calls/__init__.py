"""The caller's side of a request: handles, refs, submissions, and the mailbox that results arrive in.

It may import qserve.exceptions, qserve.base, qserve.graph, qserve.wire, qserve.broker, qserve.payloads and
qserve.tracing.
Open first: ref.py, then client.py, compose.py and mailbox.py.
"""
