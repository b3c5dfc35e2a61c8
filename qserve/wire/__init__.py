"""What travels: values and messages as bytes, their signatures, and the records of applications.

It may import the rooms below: graph and base; no input or output.
Open first: envelope.py, then codec.py and sealing.py.
"""
