"""What an installation looks like now: applications, graphs, queues, hosts, what holds a graph up, and its requests.

It may import qserve.exceptions, qserve.base, qserve.graph, qserve.wire, qserve.metrics, qserve.broker, qserve.http,
qserve.fleet and qserve.deploy.
Open first: picture.py, then observer.py, which fills it; for requests requests.py, then traces.py.
"""
