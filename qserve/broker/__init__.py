"""Everything that speaks to Redis or Valkey; the only room that imports redis-py and hiredis.

It may import qserve.exceptions, qserve.base and qserve.wire.
Open first: connection.py, then functions.py and the Lua functions in lua/.
"""

from qserve.base.import_path import standing_in

# redis-py imports OpenTelemetry's SDK, if it is installed, for two names in annotations: a tenth of a process's start
with standing_in({"opentelemetry.metrics": "Meter", "opentelemetry.sdk.metrics": "MeterProvider"}):
    import redis  # noqa: F401
