"""The nodes that ``bind`` makes: descriptions of calls, and of the input. Nothing runs here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from typing_extensions import ParamSpec, TypeVar

from qserve.base import context
from qserve.base.nearest import did_you_mean
from qserve.graph.containers import DEPTH_LIMIT, find, is_deep
from qserve.graph.plan import InputKey

P = ParamSpec("P", default=...)
T_co = TypeVar("T_co", covariant=True, default=Any)

Body = Callable[..., Any]
"""The user's class or function."""

if TYPE_CHECKING:

    class _Anything(Any):  # type: ignore[misc]
        """A node may be bound to a parameter of any type, because its value arrives there."""
else:

    class _Anything:
        pass


class Target(Generic[T_co]):
    """Base of all that ``run`` serves: nodes and applications. Calling it gives a ``T``."""


class DAGNode(Target[T_co], _Anything):
    """A node of a graph: something bound, with the arguments it was bound to. ``T`` is the type of its value.

    Any attribute of a class node is a method of the user's class, and any attribute of an input node a part of the
    input. So a node's own methods are called ``get_...``, to stay out of the way of user names.

    Example:
      from qserve.dag import InputNode

      @serve.deployment
      def add(left: int, right: int) -> int:
          return left + right

      with InputNode() as number:
          node = add.bind(add.bind(number, 1), right=number)
      print(node.get_label(), node.get_args()[0].get_args()[1], [*node.get_kwargs()])  # add 1 ['right']
      print([child.get_label() for child in node.get_all_child_nodes()])  # ['add', 'INPUT_NODE']
      print(len(node.get_toplevel_child_nodes()))  # 2
      print(node.execute(20).result())  # 41
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._args = args
        self._kwargs = dict(kwargs)
        self._check()

    def get_args(self) -> tuple[Any, ...]:
        """Return the positional arguments.

        Returns:
          The values and nodes that ``bind`` got.
        """
        return self._args

    def get_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments.

        Returns:
          A copy of the values and nodes that ``bind`` got, by name.
        """
        return dict(self._kwargs)

    def get_label(self) -> str:
        """Return the name of this node in a drawing.

        Returns:
          The deployment's or the method's name; ``INPUT_NODE`` or ``INPUT_ATTRIBUTE_NODE`` for the input.
        """
        raise NotImplementedError

    def get_toplevel_child_nodes(self) -> list[DAGNode]:
        """Return the nodes that are arguments themselves.

        Returns:
          Each node once, in the order of the arguments.
        """
        children = [value for value in self._all_arguments() if isinstance(value, DAGNode)]
        return list(dict.fromkeys(children))

    def get_all_child_nodes(self) -> list[DAGNode]:
        """Return the nodes in the arguments, those inside of lists, tuples, dicts and sets too.

        Returns:
          Each node once, in order of first appearance.
        """
        return find(self._all_arguments(), DAGNode)

    _get_toplevel_child_nodes = get_toplevel_child_nodes
    _get_all_child_nodes = get_all_child_nodes

    def bind(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise AttributeError: a node is bound already."""
        raise AttributeError(
            f".bind() cannot be used again on {type(self).__name__} {self.get_label()!r}: it is "
            "bound already; pass the node itself as an argument of another bind"
        )

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph of this node in this process, and return the ref of its result; for tests and notebooks.

        The deployments below it are constructed once, at the first call. In programs that serve applications, call the
        handle that ``serve.run`` returned instead.

        Parameters:
          args, kwargs: The input.

        Returns:
          A ``Ref``.

        Raises:
          QserveException: This program serves applications.
        """
        return context.execute(self, args, kwargs)

    def _all_arguments(self) -> list[Any]:
        return [*self._args, *self._kwargs.values()]

    def _check(self) -> None:
        if is_deep(self._all_arguments()):
            raise ValueError(
                f"{self.get_label()}.bind(...): an argument is nested too deeply; the limit is {DEPTH_LIMIT} lists,"
                " tuples, dicts and sets inside one another"
            )
        unbound = find(self._all_arguments(), UnboundMethod)
        if unbound:
            method = unbound[0].get_label()
            raise TypeError(
                f"{self.get_label()!r} was bound to the method {method!r}, which is not bound itself. "
                f"Write {method}.bind(...)."
            )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ValueError(
            f"DAGNode cannot be serialized, and {self!r} is one. Did a closure capture it? Pass it "
            "as an argument of .bind() instead, and the deployment receives a handle or a value."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get_label()!r})"


def _refuse_call(node: DAGNode, /, *args: Any, **kwargs: Any) -> NoReturn:
    raise AttributeError(
        f".remote() cannot be used on {type(node).__name__} {node.get_label()!r}: a node is not "
        "running yet. Bind it to a driver, start that by serve.run(driver) and call the handle."
    )


class _DeploymentNode(DAGNode[T_co]):
    def __init__(self, body: Body, options: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._body = body
        self._options = options
        super().__init__(args, kwargs)

    def get_body(self) -> Body:
        """Return what was bound.

        Returns:
          The user's class or function.
        """
        return self._body

    def get_options(self) -> Any:
        """Return the deployment's options.

        Returns:
          A ``DeploymentOptions``; its ``name`` is None unless the user chose one.
        """
        return self._options

    def get_label(self) -> str:
        """Return the name of this node in a drawing.

        Returns:
          The chosen name, or the class's or function's own.
        """
        return self._options.name or own_name(self._body)


class ClassNode(_DeploymentNode[Any], Generic[T_co]):
    """A class bound to its constructor's arguments: one deployment. ``T`` is the class.

    Any other attribute is a method of the class, to be bound: ``node.method.bind(...)``.

    Example:
      node = Greeter.options(num_replicas=2).bind()
      print(node.get_label(), node.get_options().num_replicas, node.get_body().__name__)  # Greeter 2 Greeter
    """

    def __getattr__(self, name: str) -> UnboundMethod:
        body = object.__getattribute__(self, "_body")
        # vars() along the bases, because getattr() also finds what the metaclass has: every
        # class seems to have __call__ and mro.
        if any(name in vars(base) for base in inspect.getmro(body)):
            return UnboundMethod(self, name)
        raise AttributeError(_no_such_method(body, name), name=name, obj=self)

    def _check(self) -> None:
        super()._check()
        check_no_input(self)


class FunctionNode(_DeploymentNode[T_co]):
    """A function bound to its arguments: one deployment, and one step of a graph.

    Example:
      @serve.deployment(name="doubler")
      def double(number: int) -> int:
          return 2 * number

      node = double.bind(21)
      print(node.get_label(), node.get_options().name, node.get_body().__name__)  # doubler doubler double
    """

    remote = _refuse_call


class UnboundMethod(Generic[P, T_co]):
    """A method of a class node that waits for its ``bind``."""

    def __init__(self, class_node: ClassNode, method: str, label: str | None = None) -> None:
        self.class_node = class_node
        self.method = method
        self.label = label

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> MethodNode[T_co]:
        """Return a node that calls the method with these arguments."""
        return MethodNode(self, args, kwargs)

    def options(self, *, name: str | None = None) -> UnboundMethod[P, T_co]:
        """Return this method with a label for drawings."""
        return UnboundMethod(self.class_node, self.method, name)

    def remote(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise AttributeError: a node does not run yet."""
        raise AttributeError(
            f".remote() cannot be used on ClassMethodNodes. Use .bind() instead to express an "
            f"symbolic actor call: {self.get_label()}.bind(...)"
        )

    def get_label(self) -> str:
        """Return the node's label and the method's name: ``Model.forward``."""
        return f"{self.class_node.get_label()}.{self.method}"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ValueError(
            f"DAGNode cannot be serialized, and {self.get_label()!r} is an unbound method of one. "
            f"Write {self.get_label()}.bind(...)."
        )

    def __repr__(self) -> str:
        return f"UnboundMethod({self.get_label()!r})"


class MethodNode(DAGNode[T_co]):
    """A method of a class node bound to its arguments: one step of a graph.

    Example:
      greeter = Greeter.bind()
      node = greeter.letters.bind("word")
      print(node.get_label(), node.get_method_name(), node.get_class_node() is greeter)  # letters letters True
    """

    remote = _refuse_call

    def __init__(self, method: UnboundMethod[..., T_co], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._method = method
        super().__init__(args, kwargs)

    def get_class_node(self) -> ClassNode:
        """Return the node of the instance whose method this is.

        Returns:
          The node that ``bind`` of the class made.
        """
        return self._method.class_node

    def get_method_name(self) -> str:
        """Return the method's name.

        Returns:
          Its name in the class.
        """
        return self._method.method

    def get_label(self) -> str:
        """Return the name of this node in a drawing.

        Returns:
          The label given by ``options(name=...)``, or the method's name.
        """
        return self._method.label or self._method.method

    def _all_arguments(self) -> list[Any]:
        return [*super()._all_arguments(), self._method.class_node]


ClassMethodNode = MethodNode

_ONE_LEVEL = (
    "A graph reads its input one level deep (inp[0], inp['key'], inp.name); pass that part to a "
    "function or method and go deeper there."
)


class InputNode(DAGNode):
    """The input of a graph, known when a request arrives: ``with InputNode() as inp: ...``.

    ``inp`` stands for the whole input; ``inp[0]``, ``inp["key"]`` and ``inp.name`` stand for its parts.

    Parameters:
      args, kwargs: Nothing may be given; they are there for a clear error.
      input_type: Accepted for compatibility and ignored.

    Raises:
      ValueError: Anything else was given.

    Example:
      from qserve.dag import InputNode

      @serve.deployment
      def add(left: int, right: int) -> int:
          return left + right

      with InputNode() as numbers:
          graph = add.bind(numbers[0], numbers[1])
      print(graph.execute(20, 22).result())  # 42
    """

    def __init__(self, /, *args: Any, input_type: Any = None, **kwargs: Any) -> None:
        if args or kwargs:
            raise ValueError(
                "InputNode should not take any args or kwargs. Write `with InputNode() as inp:` "
                "and use inp, inp[0], inp['key'] or inp.name as arguments of bind."
            )
        super().__init__((), {})
        self._entered = False
        self._parts: dict[InputKey, InputAttributeNode] = {}

    def __enter__(self) -> InputNode:
        self._entered = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def __getattr__(self, name: str) -> InputAttributeNode:
        # copy, pickle and notebooks ask objects for such names; they are not parts of an input
        if name.startswith("__"):
            raise AttributeError(f"'InputNode' object has no attribute {name!r}")
        return self._part(InputKey("attribute", name))

    def __getitem__(self, key: int | str) -> InputAttributeNode:
        if not isinstance(key, int | str):
            raise AssertionError(
                "Please only use int index or str as first-level key to access fields of an "
                f"InputNode: inp[0] or inp['key'], not inp[{key!r}]."
            )
        return self._part(InputKey("item", key))

    def get_label(self) -> str:
        """Return the name of this node in a drawing.

        Returns:
          ``INPUT_NODE``.
        """
        return "INPUT_NODE"

    def _part(self, key: InputKey) -> InputAttributeNode:
        parts: dict[InputKey, InputAttributeNode] = object.__getattribute__(self, "_parts")
        if key not in parts:
            parts[key] = InputAttributeNode(self, key)
        return parts[key]


class InputAttributeNode(DAGNode):
    """A part of the input: ``inp[0]``, ``inp["key"]`` or ``inp.name``.

    Example:
      from qserve.dag import InputNode

      with InputNode() as inp:
          part = inp["size"]
      print(part.get_input_key().key, part.get_label())  # size INPUT_ATTRIBUTE_NODE
    """

    def __init__(self, whole: InputNode, key: InputKey) -> None:
        super().__init__((whole,), {})
        self._key = key

    def get_input_key(self) -> InputKey:
        """Return which part of the input this is.

        Returns:
          An object with ``kind``, which is "item" or "attribute", and ``key``.
        """
        return self._key

    def get_label(self) -> str:
        """Return the name of this node in a drawing.

        Returns:
          ``INPUT_ATTRIBUTE_NODE``.
        """
        return "INPUT_ATTRIBUTE_NODE"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"'InputAttributeNode' object has no attribute {name!r}. {_ONE_LEVEL}")

    def __getitem__(self, key: Any) -> NoReturn:
        raise TypeError(f"'InputAttributeNode' object is not subscriptable. {_ONE_LEVEL}")


def was_entered(node: InputNode) -> bool:
    return node._entered


def own_name(body: Body) -> str:
    return str(getattr(body, "__name__", type(body).__name__))


def check_no_input(node: ClassNode) -> None:
    """Raise ValueError if a constructor argument holds a part of the input, which only a request can bring."""
    for child in node.get_all_child_nodes():
        if isinstance(child, InputNode | InputAttributeNode):
            raise ValueError(
                "InputNode handles user dynamic input the the DAG, and cannot be used as args, "
                "kwargs, or other_args_to_resolve in ClassNode constructor because it is not "
                "available at class construction or binding time. Pass it to a method of "
                f"{node.get_label()!r} instead: {node.get_label()}.bind(...).method.bind(inp)."
            )


def bottom_up(
    root: DAGNode, children: Callable[[DAGNode], Sequence[DAGNode]] = DAGNode.get_all_child_nodes
) -> list[DAGNode]:
    """Return every node that the root needs, children before parents, arguments left to right.

    It does not recurse: graphs may be thousands of nodes deep.

    Raises:
      ValueError: A node needs itself, through a container that was changed after ``bind``.
    """
    done: dict[DAGNode, None] = {}
    opened: set[DAGNode] = set()
    pending = [(root, False)]
    while pending:
        node, has_children_done = pending.pop()
        if has_children_done:
            opened.remove(node)
            done[node] = None
        elif node in opened:
            raise ValueError(
                f"the graph has a cycle: {node!r} needs its own result. Was a list or dict given "
                "to bind and changed afterwards?"
            )
        elif node not in done:
            opened.add(node)
            pending.append((node, True))
            pending.extend((child, False) for child in reversed(children(node)))
    return list(done)


def _no_such_method(body: Body, name: str) -> str:
    text = f"type object {own_name(body)!r} has no attribute {name!r}"
    if name == "remote":
        return f"{text}: a node does not run yet. Start it by serve.run(node) and call its handle."
    hint = did_you_mean(name, dir(body))
    return f"{text}. {hint}" if hint else text
