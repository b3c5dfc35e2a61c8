"""Everything that speaks to Redis or Valkey; the only room that imports redis-py and hiredis.

It may import the rooms below, from wire down.
Open first: connection.py, then functions.py and the Lua functions in lua/.
"""
