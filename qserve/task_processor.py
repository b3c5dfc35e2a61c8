"""Public import path of the adapters that send tasks; `qserve tasks` is what runs them."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

from celery import Celery

from qserve.define.task_consumers import CeleryAdapterConfig, TaskProcessorConfig, TaskResult


class AsyncCapability(Enum):
    """What an adapter can do without blocking an event loop."""

    ENQUEUE_TASK = auto()
    GET_TASK_STATUS = auto()
    CANCEL_TASK = auto()
    GET_METRICS = auto()
    HEALTH_CHECK = auto()


class TaskProcessorAdapter(ABC):
    """What sends tasks to one queue. The async methods do the same as the sync ones, in a thread.

    ``instantiate_adapter_from_config`` makes it. A subclass implements the sync methods.

    Parameters:
      config: The queue, and where its messages are.

    Example:
      from qserve.schema import CeleryAdapterConfig, TaskProcessorConfig
      from qserve.task_processor import AsyncCapability, CeleryTaskProcessorAdapter

      celery = CeleryAdapterConfig(broker_url="memory://", backend_url="cache+memory://")
      adapter = CeleryTaskProcessorAdapter(TaskProcessorConfig(queue_name="pictures", adapter_config=celery))
      adapter.initialize()
      task = adapter.enqueue_task_sync("resize", args=["cat.png"], countdown=60)
      print(adapter.get_task_status_sync(task.id).status)  # PENDING
      print(adapter.supports_any_async(), adapter.supports_async_capability(AsyncCapability.CANCEL_TASK))  # True True

      async def send() -> None:
          task = await adapter.enqueue_task_async("resize", kwargs={"picture": "dog.png"})
          print((await adapter.get_task_status_async(task.id)).status)  # PENDING

      asyncio.run(send())

      def with_a_broker() -> None:
          adapter.cancel_task_sync(task.id)
          print(adapter.health_check_sync(), adapter.get_metrics_sync())

      async def the_same_in_async_code() -> None:
          await adapter.cancel_task_async(task.id)
          print(await adapter.health_check_async(), await adapter.get_metrics_async())
    """

    def __init__(self, config: TaskProcessorConfig) -> None:
        self.config = config

    @property
    def async_capabilities(self) -> set[AsyncCapability]:
        """What can be done without blocking an event loop: all of it."""
        return {*AsyncCapability}

    def supports_async_capability(self, capability: AsyncCapability) -> bool:
        """Return whether something can be done without blocking an event loop.

        Parameters:
          capability: What to do.

        Returns:
          True for everything, unless a subclass says otherwise.
        """
        return capability in self.async_capabilities

    def supports_any_async(self) -> bool:
        """Return whether anything can be done without blocking an event loop.

        Returns:
          True, unless a subclass says otherwise.
        """
        return bool(self.async_capabilities)

    def initialize(self) -> None:  # noqa: B027  (most have nothing to do)
        """Prepare for tasks."""

    @abstractmethod
    def enqueue_task_sync(
        self, task_name: str, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> TaskResult:
        """Send a task.

        Parameters:
          task_name: The name of its ``task_handler``.
          args, kwargs: Its arguments, which Celery's serializer can write; None for none.
          options: More options of Celery's ``send_task``: ``countdown``, ``expires``, ``task_id``, ``priority``.

        Returns:
          A ``TaskResult`` with the ID of the task.
        """

    @abstractmethod
    def get_task_status_sync(self, task_id: str) -> TaskResult:
        """Return the state of a task, and its result if it has one.

        Parameters:
          task_id: The ``id`` that sending it returned.

        Returns:
          A ``TaskResult``; an unknown task is PENDING.
        """

    @abstractmethod
    def cancel_task_sync(self, task_id: str) -> bool:
        """Cancel a task that waits or runs.

        Parameters:
          task_id: The ``id`` that sending it returned.

        Returns:
          Whether that was asked for; nothing says whether the task had ended before.
        """

    @abstractmethod
    def get_metrics_sync(self) -> dict[str, Any]:
        """Return what the processes that run tasks say of themselves.

        Returns:
          Celery's statistics by the names of the processes.
        """

    @abstractmethod
    def health_check_sync(self) -> list[dict[str, Any]]:
        """Return which processes that run tasks are there.

        Returns:
          A dict for each one that replies within a second: ``[{"tasks@host": {"ok": "pong"}}]``.
        """

    async def enqueue_task_async(
        self, task_name: str, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> TaskResult:
        """Do the same as ``enqueue_task_sync``."""
        return await asyncio.to_thread(self.enqueue_task_sync, task_name, args, kwargs, **options)

    async def get_task_status_async(self, task_id: str) -> TaskResult:
        """Do the same as ``get_task_status_sync``."""
        return await asyncio.to_thread(self.get_task_status_sync, task_id)

    async def cancel_task_async(self, task_id: str) -> bool:
        """Do the same as ``cancel_task_sync``."""
        return await asyncio.to_thread(self.cancel_task_sync, task_id)

    async def get_metrics_async(self) -> dict[str, Any]:
        """Do the same as ``get_metrics_sync``."""
        return await asyncio.to_thread(self.get_metrics_sync)

    async def health_check_async(self) -> list[dict[str, Any]]:
        """Do the same as ``health_check_sync``."""
        return await asyncio.to_thread(self.health_check_sync)


class CeleryTaskProcessorAdapter(TaskProcessorAdapter):
    """Sends tasks with Celery; any other Celery program may do so as well.

    Parameters:
      config: The queue; its ``adapter_config`` is a ``CeleryAdapterConfig``.

    Raises:
      TypeError: The configuration is not a ``CeleryAdapterConfig``.

    Example:
      from qserve.schema import CeleryAdapterConfig, TaskProcessorConfig
      from qserve.task_processor import CeleryTaskProcessorAdapter

      celery = CeleryAdapterConfig(broker_url="memory://", backend_url="cache+memory://")
      adapter = CeleryTaskProcessorAdapter(TaskProcessorConfig(queue_name="pictures", adapter_config=celery))
      task = adapter.enqueue_task_sync("resize", args=["cat.png"])
      print(adapter.get_task_status_sync(task.id).status)  # PENDING

      def with_a_broker() -> None:
          print(adapter.cancel_task_sync(task.id), adapter.get_metrics_sync(), adapter.health_check_sync())
    """

    def __init__(self, config: TaskProcessorConfig) -> None:
        super().__init__(config)
        given = config.adapter_config
        if not isinstance(given, CeleryAdapterConfig):
            raise TypeError(f"adapter_config must be a CeleryAdapterConfig; got {given!r}")
        # not the current application: in a replica that is the replica's own
        self._app = Celery(config.queue_name, broker=given.broker_url, backend=given.backend_url, set_as_current=False)
        self._app.conf.update(
            task_default_queue=config.queue_name,
            broker_transport_options=given.broker_transport_options or {},
            **(given.app_custom_config or {}),
        )

    def enqueue_task_sync(
        self, task_name: str, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> TaskResult:
        """Send a task; see ``TaskProcessorAdapter.enqueue_task_sync``."""
        sent = self._app.send_task(task_name, args=args, kwargs=kwargs, queue=self.config.queue_name, **options)
        return TaskResult(id=sent.id, status=sent.status, created_at=time.time(), result=sent.result)

    def get_task_status_sync(self, task_id: str) -> TaskResult:
        """Return the state of a task; see ``TaskProcessorAdapter.get_task_status_sync``."""
        task = self._app.AsyncResult(task_id)
        return TaskResult(id=task_id, status=task.status, result=task.result)

    def cancel_task_sync(self, task_id: str) -> bool:
        """Cancel a task that waits or runs; see ``TaskProcessorAdapter.cancel_task_sync``."""
        self._app.control.revoke(task_id, terminate=True)
        return True

    def get_metrics_sync(self) -> dict[str, Any]:
        """Return Celery's statistics of `qserve tasks`; see ``TaskProcessorAdapter.get_metrics_sync``."""
        return self._app.control.inspect().stats() or {}

    def health_check_sync(self) -> list[dict[str, Any]]:
        """Return the processes of `qserve tasks` that reply; see ``TaskProcessorAdapter.health_check_sync``."""
        return self._app.control.ping() or []
