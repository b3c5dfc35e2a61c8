"""Public import path of handles and their results."""

from qserve.calls.handles import DeploymentHandle as DeploymentHandle
from qserve.calls.handles import HandleOptions as HandleOptions
from qserve.calls.handles import RayServeDAGHandle as RayServeDAGHandle
from qserve.calls.handles import RayServeDeploymentHandle as RayServeDeploymentHandle
from qserve.calls.handles import RayServeHandle as RayServeHandle
from qserve.calls.handles import RayServeLazySyncHandle as RayServeLazySyncHandle
from qserve.calls.handles import RayServeSyncHandle as RayServeSyncHandle
from qserve.calls.ref import Ref as Ref
from qserve.calls.responses import DeploymentResponse as DeploymentResponse
from qserve.calls.responses import DeploymentResponseGenerator as DeploymentResponseGenerator
from qserve.calls.responses import RefTask as RefTask
