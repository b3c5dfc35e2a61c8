"""Moving programs between Ray Serve and qserve: the table of names, and what renames them in a program's text.

It may import qserve.exceptions, qserve.base and qserve.appfile.
Open first: table.py, then move.py, plan.py and edit.py.
"""
