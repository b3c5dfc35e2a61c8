"""The caller's side of a request: handles, refs, submissions, and the mailbox that results come back by.

It may import the rooms below, from broker down.
Open first: handles.py, then outgoing.py and client.py.
"""
