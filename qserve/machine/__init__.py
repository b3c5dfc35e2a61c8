"""The processes of one machine: the embedded broker, starts and restarts, and checks of a broker.

It may import qserve.exceptions, qserve.base and qserve.broker.
Open first: launch.py.
"""
