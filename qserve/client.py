"""``Client``: what ``qserve.connect`` returns, a connection to one installation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Self

from qserve.base.promise import T
from qserve.calls.client import CLOSED, ClientPlane
from qserve.calls.handles import DeploymentHandle, Handle, bound, plane_of, submit_many
from qserve.calls.program_end import fail
from qserve.calls.ref import Plane, Ref
from qserve.exceptions import AppNotFound, BrokerError
from qserve.http.render import Rendered, parse
from qserve.wire.application import ApplicationRecord
from qserve.wire.request_ids import is_of_response, is_request_id


class Client:
    """A connection to one installation; make it with ``qserve.connect``.

    It may be used from any number of threads and event loops, and in forked children, which open connections of their
    own. What it has submitted is stored before the program ends, whether or not it is closed. Its handles and refs work
    until it is closed; a handle that is passed to a deployment is one of the deployment's own installation there.

    Example:
      with serve.connect() as client:
          greeter = client.get_deployment_handle("Greeter", app_name="default")
          refs = client.submit_many(greeter, [("Ann",), ("Ben",)])
          print(serve.get(refs))  # ['Hello Ann', 'Hello Ben']
          print(client.get_ref(refs[0].request_id).result())  # Hello Ann

      client = serve.connect()
      print(client.get_app_handle().remote("Dora").result())  # Hello Dora
      client.close()  # in async code: await client.close_async()
    """

    def __init__(self, plane: ClientPlane) -> None:
        self._plane = plane

    def get_app_handle(self, name: str = "default") -> DeploymentHandle:
        """Return a handle to an application's ingress, without importing its code.

        Parameters:
          name: The name of the application.

        Returns:
          A handle with one await: ``value = await handle.remote(...)``, or ``handle.remote(...).result()``.

        Raises:
          AppNotFound: No application of that name is deployed.
          BrokerError: The broker does not reply, or this client is closed.
        """
        return bound(DeploymentHandle(self._plane.application(name).ingress, name), self._plane)

    def get_deployment_handle(self, deployment_name: str, app_name: str = "default") -> DeploymentHandle:
        """Return a handle to one deployment of an application.

        Parameters:
          deployment_name: Its option ``name``, or else the name of its class or function.
          app_name: The name of the application.

        Returns:
          A handle with one await, as ``get_app_handle`` returns it.

        Raises:
          AppNotFound: There is no such application, or it has no such deployment.
          BrokerError: The broker does not reply, or this client is closed.
        """
        return bound(deployment_handle(self._plane.application(app_name), deployment_name), self._plane)

    def get_ref(self, request_id: str) -> Ref[Any]:
        """Return the ref of a request by its ID, whichever program has submitted it; see ``qserve.get_ref``.

        Raises:
          ValueError: This is not a request ID.
          BrokerError: This client is closed.
        """
        if self._plane.is_closed:
            raise BrokerError(CLOSED)
        return ref_by_id(request_id, lambda: self._plane)

    def submit_many(
        self, handle: Handle[..., T], arguments: Iterable[tuple[Any, ...] | Mapping[str, Any]]
    ) -> list[Ref[T]]:
        """Start many calls of one handle of this client, and send them together; see ``qserve.submit_many``.

        Raises:
          ValueError: The handle is not one of this client, or is for streams.
          TypeError: ``handle`` is not a handle, or one of ``arguments`` is neither a tuple nor a dict; nothing is sent.
          AppNotFound, BrokerError: The application does not exist, or the broker does not reply; nothing is sent.
        """
        if isinstance(handle, Handle) and plane_of(handle) is not self._plane:
            raise ValueError(f"{handle} is not a handle of this client: take it from get_app_handle of the client")
        return submit_many(handle, arguments)

    def close(self) -> None:
        """Wait until the broker has stored what was submitted, and close the connections.

        Requests go on, and any other client can get them by their ID. Refs that are still open raise BrokerError.
        Calls that were refused without anybody looking are reported on standard error, as at the end of a program.
        """
        if self._plane.is_closed:
            return
        if not self._plane.end():
            fail()
        self._plane.close()

    async def close_async(self) -> None:
        """Do the same as ``close`` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close_async()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client cannot be sent to another process: call qserve.connect there")

    def __repr__(self) -> str:
        state = ", closed" if self._plane.is_closed else ""
        return f"Client(namespace={self._plane.settings.namespace!r}{state})"


def deployment_handle(record: ApplicationRecord, deployment_name: str) -> DeploymentHandle:
    """Return a handle to one deployment of an application; raise AppNotFound if it has none of that name."""
    if deployment_name not in record.deployments:
        known = ", ".join(record.deployments)
        raise AppNotFound(f"application {record.name!r} has no deployment {deployment_name!r}; it has: {known}")
    return DeploymentHandle(deployment_name, record.name)


def ref_by_id(request_id: str, find_plane: Callable[[], Plane]) -> Ref[Any]:
    """Return the ref of a request by its id; raise ValueError if it is not one, before a plane is looked for."""
    if not isinstance(request_id, str) or not is_request_id(request_id):
        raise ValueError(f"{request_id!r} is not a request id, which has 32 hexadecimal digits: pass `ref.request_id`")
    kind = _ResponseRef if is_of_response(request_id) else Ref
    return kind(request_id, find_plane())


class _ResponseRef(Ref[Rendered]):
    """The ref of a request that came by HTTP."""

    __slots__ = ()

    def _decode(self, payload: bytes) -> Rendered:
        return parse(payload, self._get_plane().codec)

    def __reduce__(self) -> tuple[Any, ...]:
        return _ResponseRef, (self.request_id, None)
