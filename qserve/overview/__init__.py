"""What an installation looks like now: applications, graphs, queues, rates, hosts, and what holds a graph up.

It may import qserve.exceptions, qserve.base, qserve.graph, qserve.wire, qserve.metrics, qserve.broker, qserve.fleet and
qserve.deploy.
Open first: picture.py, then observer.py, which fills it.
"""
