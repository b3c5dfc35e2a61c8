"""From a compiled application to running replicas: records, code, rollouts, status, dead letters.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.broker, qserve.http, qserve.define and qserve.engine.
Open first: rollout.py, then records.py.
"""
