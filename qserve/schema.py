"""Public import path of the status of applications, and of the configuration of logs."""

from qserve.define.options import LoggingConfig as LoggingConfig
from qserve.deploy.installation import ServeStatus as ServeStatus
