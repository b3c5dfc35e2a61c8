"""Public import path of what describes applications and their logs."""

from qserve.define.options import LoggingConfig as LoggingConfig
from qserve.deploy.installation import ServeStatus as ServeStatus
