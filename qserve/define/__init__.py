"""The declarations of an application: deployments, options, batches, models, and the graph compiled from them.

It may import qserve.exceptions, qserve.base, qserve.graph, qserve.wire, qserve.metrics, qserve.tracing, qserve.calls
and qserve.http.
Open first: deployments.py, then compile.py.
"""
