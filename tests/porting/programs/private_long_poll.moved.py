"""Private parts of Ray Serve: there are none to move to."""

import qserve as serve
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace  # left: private, private
from ray.serve._private.constants import SERVE_LOGGER_NAME  # left: private
from ray.serve.context import _get_global_client  # left: private
from qserve.context import _serve_request_context
import logging

logger = logging.getLogger(SERVE_LOGGER_NAME)


@serve.deployment
class Watcher:
    def __init__(self):
        self.client = _get_global_client()

    def __call__(self):
        return _serve_request_context.get().request_id


def routes(controller, callback):
    return LongPollClient(controller, {LongPollNamespace.ROUTE_TABLE: callback})


app = Watcher.bind()
