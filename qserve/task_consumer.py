"""Public import path of task consumers, and of what sends them tasks."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from qserve.define.task_consumers import TaskProcessorConfig
from qserve.define.task_consumers import task_consumer as task_consumer
from qserve.define.task_consumers import task_handler as task_handler


def instantiate_adapter_from_config(task_processor_config: TaskProcessorConfig) -> Any:
    """Return what sends tasks to a queue, asks for their state and cancels them, in any program.

    Parameters:
      task_processor_config: The queue, as its consumer has it.

    Returns:
      A ``TaskProcessorAdapter``; Celery's unless the configuration names another.

    Raises:
      TypeError: The adapter of the configuration is neither a class of that kind nor its import path.
      ImportError: Its import path leads nowhere.

    Example:
      from qserve.schema import CeleryAdapterConfig, TaskProcessorConfig
      from qserve.task_consumer import instantiate_adapter_from_config

      celery = CeleryAdapterConfig(broker_url="memory://", backend_url="cache+memory://")
      config = TaskProcessorConfig(queue_name="pictures", adapter_config=celery)
      adapter = instantiate_adapter_from_config(config)
      task = adapter.enqueue_task_sync("resize", args=["cat.png"])
      print(adapter.get_task_status_sync(task.id).status)  # PENDING
    """
    adapter = task_processor_config.adapter
    if isinstance(adapter, str):
        module, _, name = adapter.replace(":", ".").rpartition(".")
        adapter = getattr(import_module(module or "qserve.task_processor"), name)
    if not hasattr(adapter, "enqueue_task_sync"):
        raise TypeError(f"an adapter is a subclass of qserve.task_processor.TaskProcessorAdapter; got {adapter!r}")
    made = adapter(task_processor_config)
    made.initialize()
    return made
