"""From a compiled application to running replicas: registration, rollout, status, dead letters.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.broker, qserve.tracing, qserve.http, qserve.fleet,
qserve.define, qserve.appfile, qserve.engine and qserve.openapi.
Open first: rollout.py, then registration.py.
"""
