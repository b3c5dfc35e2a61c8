"""Config files: read with the place of every value, and checked as the same words in code would be.

It may import qserve.exceptions, qserve.base, qserve.wire and qserve.define.
Open first: read.py, then model.py.
"""
