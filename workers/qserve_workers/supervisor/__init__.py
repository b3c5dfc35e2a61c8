"""The supervisor of a host: it starts replicas, watches them and reassigns the calls of dead replicas.

It may import qserve.exceptions, qserve.base, qserve.wire, qserve.metrics, qserve.broker, qserve.payloads, qserve.fleet,
qserve.define, qserve.engine, qserve.deploy, qserve_workers.replica and qserve_workers.process.
Open first: supervisor.py.
"""
