"""User code is called here, and only here.

It may import qserve.exceptions, qserve.base, qserve.graph, qserve.wire, qserve.tracing, qserve.calls and
qserve.http.
Open first: invoke.py, then servable.py and step.py.
"""
