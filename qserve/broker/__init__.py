"""Everything that speaks to Redis or Valkey; the only room that imports redis-py and hiredis.

It may import qserve.exceptions, qserve.base and qserve.wire.
Open first: connection.py, then functions.py and the Lua functions in lua/.
"""
