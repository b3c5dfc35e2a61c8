"""The processes of one machine: the embedded broker, their launch and restarts, and checks of a broker.

It may import the rooms below, from deploy down.
Open first: launch.py.
"""
