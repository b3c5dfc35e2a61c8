"""``@task_consumer`` and ``@task_handler``: a deployment whose methods run the tasks of a Celery queue."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field

from qserve.base import unused
from qserve.wire.application import TaskQueue

CELERY_ADAPTER = "CeleryTaskProcessorAdapter"
"""The end of the import path of the adapter that sends Celery's tasks, in ``task_processor``."""
FOR_EVER = -1
"""The number of retries that stands for any."""
_HANDLER, _CONSUMER = "__qserve_task__", "__qserve_task_processor__"
C = TypeVar("C", bound=type)


class CeleryAdapterConfig(BaseModel):
    """Where Celery's messages and results are.

    Parameters:
      broker_url, backend_url: Addresses of Celery's broker, and of its result backend.
      app_custom_config: More settings of the Celery application that sends tasks.
      broker_transport_options: Options of that application's transport.
      task_custom_config, worker_concurrency: Accepted for Ray Serve's programs; a warning says that
        they have no effect.

    Example:
      from qserve.schema import CeleryAdapterConfig

      celery = CeleryAdapterConfig(broker_url="redis://broker:6379/1", backend_url="redis://broker:6379/2")
    """

    broker_url: str = Field(pattern=r"^[!-~]+$")
    backend_url: str = Field(pattern=r"^[!-~]+$")
    app_custom_config: dict[str, Any] | None = None
    task_custom_config: dict[str, Any] | None = None
    broker_transport_options: dict[str, Any] | None = None
    worker_concurrency: int | None = None


class TaskProcessorConfig(BaseModel):
    """The queue of a task consumer, and what becomes of tasks that fail.

    Parameters:
      queue_name: The queue that it consumes.
      adapter: A class that sends tasks, or its import path; Celery's if it is left out.
      adapter_config: The settings of that class; for Celery a ``CeleryAdapterConfig``.
      max_retries: How often a task that raised is tried again, after 1, 2, 4 ... seconds, 60 at most; None: for ever.
      failed_task_queue_name: The queue for tasks that failed for good.
      unprocessable_task_queue_name: The queue for tasks with unknown names, and for messages that cannot be read.

    Example:
      from qserve.schema import CeleryAdapterConfig, TaskProcessorConfig

      config = TaskProcessorConfig(
          queue_name="pictures",
          adapter_config=CeleryAdapterConfig(broker_url="redis://broker:6379/1", backend_url="redis://broker:6379/2"),
          failed_task_queue_name="pictures-failed",
      )
    """

    queue_name: str = Field(pattern=r"^[!-~]+$")
    adapter: str | Callable[..., Any] = CELERY_ADAPTER
    adapter_config: Any
    max_retries: int | None = Field(default=3, ge=0)
    failed_task_queue_name: str | None = None
    unprocessable_task_queue_name: str | None = None


class TaskResult(BaseModel):
    """The state of a task.

    Parameters:
      id: The ID of the task.
      status: Celery's word: PENDING, RETRY, SUCCESS, FAILURE or REVOKED.
      created_at: When it was sent, in Unix seconds; None where that is not known.
      result: The result, or the exception of a task that failed.

    Example:
      from qserve.schema import TaskResult

      task = TaskResult(id="5d2c", status="SUCCESS", result=42)
      if task.status == "SUCCESS":
          print(task.result)  # 42
    """

    id: str
    status: str
    created_at: float | None = None
    result: Any = None


def task_handler(_func: Callable[..., Any] | None = None, *, name: str | None = None) -> Any:
    """Mark a method of a task consumer that runs tasks: ``@task_handler`` or ``@task_handler(name="resize")``.

    Parameters:
      name: The name of the tasks. None takes the method's own.

    Returns:
      The method itself, or a decorator for it.

    Raises:
      ValueError: The name is empty, or is not text.
      TypeError: It is not written on a method.

    Example:
      from qserve.task_consumer import task_handler

      class Resizer:
          @task_handler(name="resize")
          def resize(self, picture: str) -> str:
              return f"small-{picture}"
    """
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ValueError(f"the name of a task must be text that is not empty; got {name!r}")

    def mark(func: Any) -> Any:
        if not inspect.isfunction(func):
            raise TypeError(f"@task_handler must be written on a method; got {func!r}")
        vars(func)[_HANDLER] = name or func.__name__
        return func

    return mark if _func is None else mark(_func)


def task_consumer(*, task_processor_config: TaskProcessorConfig) -> Callable[[C], C]:
    """Make a class run the tasks of a queue with its ``task_handler`` methods, once it is a deployment.

    Parameters:
      task_processor_config: The queue, and what becomes of tasks that fail.

    Returns:
      A decorator for the class.

    Raises:
      TypeError: It is not written on a class, below ``@serve.deployment``; or the configuration is not Celery's.
      ValueError: The class has no ``task_handler``, or two of one name.

    Example:
      from qserve.schema import CeleryAdapterConfig, TaskProcessorConfig
      from qserve.task_consumer import task_consumer, task_handler

      celery = CeleryAdapterConfig(broker_url="redis://broker:6379/1", backend_url="redis://broker:6379/2")

      @serve.deployment
      @task_consumer(task_processor_config=TaskProcessorConfig(queue_name="pictures", adapter_config=celery))
      class Resizer:
          @task_handler(name="resize")
          def resize(self, picture: str) -> str:
              return f"small-{picture}"

      app = Resizer.bind()
    """
    config = task_processor_config
    if not isinstance(config, TaskProcessorConfig):
        raise TypeError(f"task_processor_config must be a TaskProcessorConfig; got {config!r}")
    if not isinstance(config.adapter_config, CeleryAdapterConfig):
        raise TypeError(f"adapter_config must be a CeleryAdapterConfig; got {config.adapter_config!r}")
    adapter = getattr(config.adapter, "__name__", config.adapter)
    if str(adapter).rpartition(".")[2] != CELERY_ADAPTER:
        raise TypeError(f"tasks are consumed from Celery's queues only: leave `adapter` out; got {config.adapter!r}")

    def decorate(cls: C) -> C:
        if not inspect.isclass(cls):
            raise TypeError(f"@task_consumer must be written on a class, below @serve.deployment; got {cls!r}")
        found = [name for name, _ in inspect.getmembers(cls, lambda member: hasattr(member, _HANDLER))]
        handlers = {getattr(getattr(cls, name), _HANDLER): name for name in found}
        if not found:
            raise ValueError(f"{cls.__name__} has no method with @task_handler, so it can run no task")
        if len(handlers) < len(found):
            raise ValueError(f"two methods of {cls.__name__} are handlers of one task: {', '.join(found)}")
        setattr(cls, _CONSUMER, (config, handlers))
        return cls

    return decorate


def task_queue_of(func_or_class: Any) -> TaskQueue | None:
    """Return the queue that a deployment's class consumes; None if it consumes none."""
    found = getattr(func_or_class, _CONSUMER, None)
    if found is None:
        return None
    config, handlers = found
    return TaskQueue(
        config.queue_name,
        dict(handlers),
        FOR_EVER if config.max_retries is None else config.max_retries,
        config.failed_task_queue_name or "",
        config.unprocessable_task_queue_name or "",
    )


class TaskPlace(NamedTuple):
    """Where Celery has a queue."""

    broker_url: str
    backend_url: str
    queue: str


def task_places(deployments: Iterable[Any]) -> list[TaskPlace]:
    """Return where Celery has the queues that deployments consume."""
    found = [getattr(deployment.func_or_class, _CONSUMER, None) for deployment in deployments]
    configs = [pair[0] for pair in found if pair is not None]
    return [
        TaskPlace(config.adapter_config.broker_url, config.adapter_config.backend_url, config.queue_name)
        for config in configs
    ]


def unused_options(func_or_class: Any) -> list[str]:
    """Return what the configuration of a task consumer says without effect."""
    found = getattr(func_or_class, _CONSUMER, None)
    given = [] if found is None else vars(found[0].adapter_config).items()
    return [name for name, value in given if value is not None and name in unused.TASKS]
