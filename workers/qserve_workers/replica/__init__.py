"""One replica: it takes calls, runs user code and commits the effects.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.metrics, qserve.broker, qserve.payloads, qserve.calls,
qserve.http, qserve.define, qserve.engine and qserve.deploy.
Open first: replica.py.
"""
