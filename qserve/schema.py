"""Public import path of the status of applications, and of the configuration of logs and task consumers."""

from qserve.define.options import LoggingConfig as LoggingConfig
from qserve.define.task_consumers import CeleryAdapterConfig as CeleryAdapterConfig
from qserve.define.task_consumers import TaskProcessorConfig as TaskProcessorConfig
from qserve.define.task_consumers import TaskResult as TaskResult
from qserve.deploy.status import ApplicationStatus as ApplicationStatus
from qserve.deploy.status import ApplicationStatusOverview as ApplicationStatusOverview
from qserve.deploy.status import DeploymentStatus as DeploymentStatus
from qserve.deploy.status import DeploymentStatusOverview as DeploymentStatusOverview
from qserve.deploy.status import DeploymentStatusTrigger as DeploymentStatusTrigger
from qserve.deploy.status import ServeStatus as ServeStatus
