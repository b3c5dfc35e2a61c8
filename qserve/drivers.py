"""Public import path of the DAGDriver."""

from qserve.define.drivers import DAGDriver as DAGDriver
