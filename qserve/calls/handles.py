"""Handles call a deployment or a graph from Python. A handle holds names only; the current plane carries its calls.

There are two generations, as in Ray Serve 2.7:

| class                       | ``handle.method.remote(x)`` gives        | where it comes from              |
| --------------------------- | ---------------------------------------- | -------------------------------- |
| ``RayServeDeploymentHandle`` | two awaits: ref, then value             | constructor arguments, by default |
| ``RayServeSyncHandle``      | a ref for ``qserve.get``                 | ``qserve.run``                   |
| ``DeploymentHandle``        | one await, or ``.result()``              | ``get_app_handle``, annotations, |
|                             |                                          | ``options(use_new_handle_api=True)`` |
| ``RayServeDAGHandle``       | two awaits; the arguments are the graph's input | a node passed to a constructor |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, Self, overload

from typing_extensions import ParamSpec, TypeVar

from qserve.base.carried import carried_here
from qserve.base.context import RequestContext, request_context
from qserve.base.promise import T
from qserve.base.receiver_url import parts_of
from qserve.calls.items import ItemRef
from qserve.calls.ref import Call, Plane, Ref, current
from qserve.calls.responses import DeploymentResponse, DeploymentResponseGenerator, RefStreamTask, RefTask
from qserve.wire.codes import Code, register
from qserve.wire.webhook import Target

P = ParamSpec("P", default=...)
R_co = TypeVar("R_co", covariant=True, default=Any)
H = TypeVar("H", bound="Handle[..., Any]")


@dataclass(frozen=True)
class HandleOptions:
    """The options of a handle, which ``handle.options(...)`` changes.

    Parameters:
      method_name: The method that ``remote`` calls.
      stream: Whether the method is a generator whose items are wanted as they are yielded.
      multiplexed_model_id: The model that the calls are for; "" for none.
      webhook: A URL to which a gateway sends the end of each call; "" for none.
      trace: Whether to have each call traced.

    Example:
      from qserve.handle import DeploymentHandle, HandleOptions

      greeter = DeploymentHandle("Greeter", "default", HandleOptions(trace=True))
      print(greeter.remote("Dora").result())  # Hello Dora
    """

    method_name: str = "__call__"
    stream: bool = False
    multiplexed_model_id: str = ""
    webhook: str = ""
    trace: bool = False


class Handle(Generic[P, R_co]):
    """The base of all handles: a target and its options."""

    _respond: ClassVar[Any]
    """Makes what ``remote`` returns from a ref."""
    _respond_stream: ClassVar[type[DeploymentResponseGenerator[Any]]] = RefStreamTask
    _runs_graph: ClassVar[bool] = False
    _plane: Plane | None = None
    """Carries the calls of a client's handle; None for what the process uses when they are made."""

    def __init__(self, target: str, app_name: str, options: HandleOptions) -> None:
        self._target = target
        self.app_name = app_name
        self._options = options

    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Start the call; the class of the handle says what this returns.

        This returns at once. With ``options(stream=True)`` the result is an iterator over the items.

        Parameters:
          args, kwargs: The arguments of the method. Refs and un-awaited calls among them arrive as their values.

        Returns:
          A ``DeploymentResponse`` of a ``DeploymentHandle``, a ``Ref`` of a ``RayServeSyncHandle``, a ``RefTask`` of
          the others; with ``stream=True`` a ``DeploymentResponseGenerator``.

        Raises:
          BrokerUnavailable: This program is not connected, no broker is set, and this user runs nothing here.
          PayloadError: An argument cannot be sent.
          BackPressureError: The queue is full; of a ``RayServeSyncHandle`` here, of the others when they are awaited.
        """
        context = request_context.get()
        ref = (self._plane or current.plane()).submit(self._call(context, args, kwargs))
        ref.made_by(context)
        return (self._respond_stream if isinstance(ref, ItemRef) else type(self)._respond)(ref)

    def _call(self, context: RequestContext, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        options = self._options
        return Call(
            self.app_name,
            self._target,
            options.method_name,
            args,
            kwargs,
            graph=self._target if self._runs_graph else None,
            trace_id=context.request_id,
            route=context.route,
            model_id=options.multiplexed_model_id,
            stream=options.stream,
            carried=carried_here.get() or context.carried,
            webhook=Target(options.webhook, context.request_id).encode() if options.webhook else b"",
            is_traced=options.trace,
        )

    @overload
    def options(  # type: ignore[overload-overlap]
        self: Handle[P, Iterator[T] | AsyncIterator[T]],
        *,
        stream: Literal[True],
        multiplexed_model_id: str | None = None,
        use_new_handle_api: bool | None = None,
        webhook: str | None = None,
        trace: bool | None = None,
    ) -> StreamingHandle[P, T]: ...

    @overload
    def options(
        self,
        *,
        stream: Literal[True],
        method_name: str | None = None,
        multiplexed_model_id: str | None = None,
        use_new_handle_api: bool | None = None,
        webhook: str | None = None,
        trace: bool | None = None,
    ) -> StreamingHandle[..., Any]: ...

    @overload
    def options(
        self,
        *,
        use_new_handle_api: Literal[True],
        stream: Literal[False] | None = None,
        multiplexed_model_id: str | None = None,
        webhook: str | None = None,
        trace: bool | None = None,
    ) -> DeploymentHandle[P, R_co]: ...

    @overload
    def options(
        self,
        *,
        stream: Literal[False] | None = None,
        multiplexed_model_id: str | None = None,
        webhook: str | None = None,
        trace: bool | None = None,
    ) -> Self: ...

    @overload
    def options(
        self,
        *,
        stream: bool | None = None,
        method_name: str | None = None,
        multiplexed_model_id: str | None = None,
        use_new_handle_api: bool | None = None,
        webhook: str | None = None,
        trace: bool | None = None,
    ) -> Any: ...

    def options(
        self,
        *,
        method_name: str | None = None,
        stream: bool | None = None,
        multiplexed_model_id: str | None = None,
        use_new_handle_api: bool | None = None,
        webhook: str | None = None,
        trace: bool | None = None,
    ) -> Any:
        """Return a copy of this handle with some options changed; None leaves one as it is.

        Parameters:
          method_name: The method that ``remote`` calls; ``handle.method`` is short for that.
          stream: Whether the method is a generator whose items are wanted as they are yielded.
          multiplexed_model_id: The model that the calls are for.
          use_new_handle_api: True for one await (``DeploymentHandle``), False for two.
          webhook: A URL to which a gateway that has a secret for webhooks sends the end of each call; "" for none.
            Such a call goes on although the request that has made it ends, and its result is kept.
          trace: Whether to have each call traced, for `qserve requests trace` and the live page.

        Returns:
          The new handle.

        Raises:
          ValueError: No webhook may be sent to that URL, or it is asked for together with a stream.
        """
        given = {
            "method_name": method_name, "stream": stream, "multiplexed_model_id": multiplexed_model_id,
            "webhook": webhook, "trace": trace,
        }  # fmt: skip
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        changed = replace(self._options, **chosen)
        if webhook:
            try:
                parts_of(webhook)
            except ValueError as error:
                raise ValueError(f"webhook={webhook[:100]!r}: {error}") from None
        if changed.webhook and changed.stream:
            raise ValueError("a webhook tells of one result, and stream=True asks for items: leave one of them out")
        kind: type[Handle[..., Any]] = type(self)
        if use_new_handle_api is not None and not isinstance(self, RayServeDAGHandle):
            kind = DeploymentHandle if use_new_handle_api else RayServeDeploymentHandle
        return bound(kind(self._target, self.app_name, changed), self._plane)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and other._parts() == self._parts() and other._plane is self._plane

    def __hash__(self) -> int:
        return hash(self._parts())

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, self._parts()

    def _parts(self) -> tuple[type, str, str, HandleOptions]:
        return type(self), self._target, self.app_name, self._options


class _DeploymentHandle(Handle[P, R_co]):
    def __init__(self, deployment_name: str, app_name: str = "default", options: HandleOptions | None = None) -> None:
        super().__init__(deployment_name, app_name, options or HandleOptions())

    @property
    def deployment_name(self) -> str:
        """The name of the deployment."""
        return self._target

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "__call__":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return self.options(method_name=name)

    def __repr__(self) -> str:
        method = self._options.method_name
        called = "" if method == "__call__" else f", method={method!r}"
        return f"{type(self).__name__}(deployment={self._target!r}{called})"


class RayServeDeploymentHandle(_DeploymentHandle[P, R_co]):
    """A handle for code in deployments: ``ref = await handle.method.remote(x)``, then ``value = await ref``.

    Constructors get one for each node that their deployment was bound to.

    Example:
      @serve.deployment
      class Polite:
          def __init__(self, greeter):
              self.greeter = greeter.options(trace=True)

          async def __call__(self, name: str) -> str:
              ref = await self.greeter.remote(name)  # the broker has the call
              return f"{await ref}, how are you?"

      print(serve.run(Polite.bind(Greeter.bind()), local=True).remote("Dora").result())  # Hello Dora, how are you?
    """

    _respond = RefTask

    if TYPE_CHECKING:

        def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> RefTask[R_co]: ...
        def __getattr__(self, name: str) -> RayServeDeploymentHandle[..., Any]: ...


class RayServeSyncHandle(_DeploymentHandle[P, R_co]):
    """A handle for sync code: ``qserve.get(handle.method.remote(x))``. ``run`` returns it.

    Inside of a deployment it becomes a handle with two awaits, since nothing may block there.

    Example:
      print(serve.get(handle.remote("Dora")))  # Hello Dora
      print([*handle.letters.options(stream=True).remote("abc")])  # ['a', 'b', 'c']
    """

    if TYPE_CHECKING:

        def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Ref[R_co]: ...
        def __getattr__(self, name: str) -> RayServeSyncHandle[..., Any]: ...

    @staticmethod
    def _respond(ref: Ref) -> Ref | RefTask:
        if current.in_replica():  # captured by a deployment's code, where nothing may block
            return RefTask(ref)
        ref.acceptance.wait()
        refusal = ref.refusal()
        if refusal is not None:
            raise refusal
        return ref


RayServeLazySyncHandle = RayServeSyncHandle
"""Its name in some versions of Ray Serve."""


class DeploymentHandle(_DeploymentHandle[P, R_co]):
    """A handle of the newer generation: ``value = await handle.method.remote(x)``, or ``.result()`` in sync code.

    ``get_app_handle``, ``get_deployment_handle`` and ``handle.options(use_new_handle_api=True)`` return it.

    Example:
      greeter = serve.get_app_handle("default")
      print(greeter.remote("Dora").result(timeout_s=10))  # Hello Dora

      async def greet() -> None:
          print(await greeter.remote("Ann"))  # Hello Ann
          print([letter async for letter in greeter.letters.options(stream=True).remote("ab")])  # ['a', 'b']

      asyncio.run(greet())
    """

    _respond = DeploymentResponse
    _respond_stream = DeploymentResponseGenerator

    if TYPE_CHECKING:

        def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> DeploymentResponse[R_co]: ...
        def __getattr__(self, name: str) -> DeploymentHandle[..., Any]: ...


class RayServeDAGHandle(Handle[P, R_co]):
    """A handle to a graph: the arguments of ``remote`` are the graph's input.

    A constructor gets one for a graph with an ``InputNode`` that its deployment was bound to.

    Example:
      from qserve.dag import InputNode

      @serve.deployment
      def double(number: int) -> int:
          return 2 * number

      @serve.deployment
      class Caller:
          def __init__(self, graph):
              self.graph = graph.options(trace=True)

          async def __call__(self, number: int) -> int:
              return await (await self.graph.remote(number))

      with InputNode() as number:
          graph = double.bind(double.bind(number))
      print(serve.run(Caller.bind(graph), local=True).remote(5).result())  # 20
    """

    _respond = RefTask
    _runs_graph = True

    if TYPE_CHECKING:

        def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> RefTask[R_co]: ...

    def __init__(self, graph_name: str, app_name: str = "default", options: HandleOptions | None = None) -> None:
        super().__init__(graph_name, app_name, options or HandleOptions())

    @property
    def graph_name(self) -> str:
        """The name of the graph."""
        return self._target

    def __repr__(self) -> str:
        return f"{type(self).__name__}(graph={self._target!r})"


class GraphHandle(RayServeDAGHandle[P, R_co]):
    """The same in an application whose handles take one await."""

    _respond: ClassVar[Any] = DeploymentResponse
    _respond_stream = DeploymentResponseGenerator


RayServeHandle = RayServeDeploymentHandle


class StreamingHandle(Protocol[P, R_co]):
    """The type of ``handle.options(stream=True)``: a handle whose calls return iterators over their items."""

    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> DeploymentResponseGenerator[R_co]:
        """Start the call and return an iterator over its items."""
        ...

    def __getattr__(self, name: str) -> StreamingHandle[..., Any]: ...


def bound(handle: H, plane: Plane | None) -> H:
    """Let this plane carry the calls of a handle; None leaves it as it is."""
    # not methods and attributes of the handle: any name without an underscore may be a method of the user's
    if plane is not None:
        handle._plane = plane
    return handle


def plane_of(handle: Handle[..., Any]) -> Plane:
    """Return the plane that carries the calls of a handle."""
    return handle._plane or current.plane()


def submit_many(handle: Handle[..., T], arguments: Iterable[tuple[Any, ...] | Mapping[str, Any]]) -> list[Ref[T]]:
    """Start many calls of one handle, and send them together instead of one by one.

    Nothing is awaited. What refuses one call, such as a full queue or a value that cannot be sent, is raised by its ref
    alone. Up to 250 calls, or 8 MiB, make one round trip to the broker.

    Parameters:
      handle: What ``remote`` would be called on.
      arguments: For each call a tuple of its arguments, or a dict of its keyword arguments.

    Returns:
      The refs, in the order of ``arguments``.

    Raises:
      TypeError: ``handle`` is not a handle, or one of ``arguments`` is neither a tuple nor a dict; nothing is sent.
      ValueError: The handle is for streams.
      AppNotFound, BrokerError: The application does not exist, or the broker does not reply; nothing is sent.

    Example:
      refs = serve.submit_many(handle, [(name,) for name in ("Ann", "Ben")])
      serve.accepted(refs)
      print(serve.get(refs))  # ['Hello Ann', 'Hello Ben']
    """
    if not isinstance(handle, Handle):
        raise TypeError(f"submit_many takes a handle, such as `handle.method`; got {type(handle).__name__!r}")
    if handle._options.stream:
        raise ValueError("submit_many takes no handle with stream=True: call its `remote` for each stream")
    context = request_context.get()
    calls = []
    for place, given in enumerate(arguments):
        if isinstance(given, tuple):
            calls.append(handle._call(context, given, {}))
        elif isinstance(given, Mapping):
            calls.append(handle._call(context, (), dict(given)))
        else:
            raise TypeError(
                "submit_many takes a tuple of arguments for each call, such as [(1,), (2,)], or a dict of keyword"
                f" arguments; arguments[{place}] is of type {type(given).__name__!r}"
            )
    refs = plane_of(handle).submit_many(calls)
    for ref in refs:
        ref.made_by(context)
    return refs


def _arrive(kind: type[Handle[..., Any]], target: str, app_name: str, options: HandleOptions) -> Any:
    # a sync handle would block a replica's event loop: inside a deployment it becomes one with two awaits
    if kind is RayServeSyncHandle and current.in_replica():
        kind = RayServeDeploymentHandle
    return kind(target, app_name, options)


_KINDS: dict[type[Handle[..., Any]], Code] = {
    RayServeDeploymentHandle: Code.DEPLOYMENT_HANDLE,
    RayServeSyncHandle: Code.SYNC_HANDLE,
    DeploymentHandle: Code.NEW_HANDLE,
    RayServeDAGHandle: Code.GRAPH_HANDLE,
    GraphHandle: Code.NEW_GRAPH_HANDLE,
}
"""The classes of handles; a packed handle begins with its class's number in this order."""


_FIRST = 3
"""How many options the first version said of a handle."""


def _pack(handle: Handle[..., Any]) -> list[Any]:
    kind, target, app_name, options = handle._parts()
    said = astuple(options)
    return [list(_KINDS).index(kind), target, app_name, *(said if any(said[_FIRST:]) else said[:_FIRST])]


def _unpack(packed: list[Any]) -> Any:
    kind, target, app_name, *options = packed
    return _arrive(list(_KINDS)[kind], target, app_name, HandleOptions(*options[: len(fields(HandleOptions))]))


for _kind, _code in _KINDS.items():
    register(_code, _kind, _pack, _unpack)
