"""Which task calls what: the names of tasks, from what is deployed."""

from __future__ import annotations

from typing import NamedTuple

from qserve.base.nearest import did_you_mean
from qserve.broker.registry import Registry
from qserve.wire.application import TaskQueue

PREFIX = "qserve."


class TaskTarget(NamedTuple):
    """What a task calls.

    Parameters:
      name: The task's own name, also where a queue has given it a shorter one.
      queue: The queue that the deployment consumes; None for a task that is called by its own name.
    """

    name: str
    app: str
    deployment: str
    method: str
    queue: TaskQueue | None = None


class TaskNames:
    """The tasks that there are, and the queues on which deployments want theirs.

    A deployment is ``qserve.APP.DEPLOYMENT``, another method of it ``qserve.APP.DEPLOYMENT.METHOD``; the handlers of a
    ``task_consumer`` have names of their own, each on its queue.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._change = ""
        self._applications: list[str] = []
        self._deployments: dict[str, TaskTarget] = {}
        self._handlers: dict[tuple[str, str], TaskTarget] = {}
        self.queues: dict[str, TaskQueue] = {}

    def refresh(self) -> bool:
        """Read what is deployed, if that has changed; return whether it has.

        Raises:
          BrokerError: It cannot be read; what was known stays.
        """
        change = self._registry.last_change()
        if change == self._change:
            return False
        records = list(self._registry.all())
        self._change, self._applications = change, sorted(record.name for record in records)
        found = [(record.name, one) for record in records for one in record.deployments.values()]
        self._deployments = {
            name: TaskTarget(name, app, one.name, "__call__")
            for name, app, one in ((f"{PREFIX}{app}.{one.name}", app, one) for app, one in found)
        }
        consumers = [(app, one.name, one.tasks) for app, one in found if one.tasks is not None]
        self.queues = {tasks.queue: tasks for _, _, tasks in consumers}
        self._handlers = {
            (tasks.queue, name): TaskTarget(f"{PREFIX}{app}.{deployment}.{method}", app, deployment, method, tasks)
            for app, deployment, tasks in consumers
            for name, method in tasks.handlers.items()
        }
        return True

    def all(self) -> list[TaskTarget]:
        """Return the tasks that have names of their own, without those of methods, which the registry does not know."""
        return [*self._deployments.values(), *self._handlers.values()]

    def find(self, name: str, queue: str) -> TaskTarget | None:
        """Return what a task of a queue calls; None if nothing of that name is deployed."""
        found = self._handlers.get((queue, name)) or self._deployments.get(name)
        if found is not None:
            return found
        # sent again by Celery, or with another routing key
        by_name = {one.name: one for (_, short), one in self._handlers.items() if name in (short, one.name)}
        if len(by_name) == 1:
            return by_name.popitem()[1]
        deployment, _, method = name.rpartition(".")
        found = self._deployments.get(deployment)
        return None if found is None or method.startswith("_") else found._replace(name=name, method=method)

    def may_come(self, name: str) -> bool:
        """Return whether a task names an application that is not deployed, and may be soon."""
        known = [f"{PREFIX}{app}." for app in self._applications]
        return name.startswith(PREFIX) and not name.startswith(tuple(known))

    def unknown(self, name: str) -> str:
        """Return what is wrong with a name, and the names that there are."""
        known = sorted({*self._deployments, *(name for _, name in self._handlers)})
        hint = did_you_mean(name, known)
        if not name.startswith(PREFIX) and not hint:
            hint = 'If it is a task of your own, name its queue, also in a chain: task.s(...).set(queue="celery")'
        return f"no deployment is called {name!r}; there are: {', '.join(known) or 'none'}. {hint}".rstrip()
