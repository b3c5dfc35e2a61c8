"""User code is called here, and only here.

It may import the rooms below, from web down.
Open first: step.py, then servable.py.
"""
