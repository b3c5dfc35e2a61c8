"""HTTP as values: messages, requests, adapters and how results become responses.

It may import the rooms below, from calls down.
Open first: message.py, then adapting.py and render.py.
"""
