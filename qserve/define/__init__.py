"""What users declare: deployments, options, batches, multiplexed models, and the graph compiled from them.

It may import qserve.exceptions, qserve.base, qserve.graph, qserve.calls and qserve.http.
Open first: deployments.py, then compile.py.
"""
