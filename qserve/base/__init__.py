"""The foundation of all other rooms: settings, key names, clocks, logging, promises, processes.

It may import qserve.exceptions.
Open first: settings.py, then keys.py, the table of every key in the broker.
"""
