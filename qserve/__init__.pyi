# The public names, each from the module that defines it. Type checkers read this file; __init__.py imports a name from
# there when it is first used.

from qserve.api import RunTarget as RunTarget
from qserve.api import connect as connect
from qserve.api import delete as delete
from qserve.api import get_app_handle as get_app_handle
from qserve.api import get_deployment_handle as get_deployment_handle
from qserve.api import get_ref as get_ref
from qserve.api import init as init
from qserve.api import is_initialized as is_initialized
from qserve.api import run as run
from qserve.api import run_many as run_many
from qserve.api import shutdown as shutdown
from qserve.api import shutdown_async as shutdown_async
from qserve.api import start as start
from qserve.api import status as status
from qserve.base.context import call_context as call_context
from qserve.base.context import get_replica_context as get_replica_context
from qserve.base.context import get_request_context as get_request_context
from qserve.calls.handles import submit_many as submit_many
from qserve.calls.progress import progress as progress
from qserve.calls.progress import report_progress as report_progress
from qserve.calls.ref import ObjectRef as ObjectRef
from qserve.calls.responses import accepted as accepted
from qserve.calls.responses import cancel as cancel
from qserve.calls.responses import get as get
from qserve.calls.responses import put as put
from qserve.calls.responses import wait as wait
from qserve.client import Client as Client
from qserve.define.application import Application as Application
from qserve.define.application import build as build
from qserve.define.batching import batch as batch
from qserve.define.deployments import Deployment as Deployment
from qserve.define.deployments import deployment as deployment
from qserve.define.drivers import DAGDriver as DAGDriver
from qserve.define.multiplexing import get_multiplexed_model_id as get_multiplexed_model_id
from qserve.define.multiplexing import multiplexed as multiplexed
from qserve.graph.nodes import InputNode as InputNode
from qserve.tracing.here import get_trace_context as get_trace_context
from qserve.web.ingress import ingress as ingress
from qserve.wire.events import Event as Event

__version__: str

def import_all() -> None: ...
