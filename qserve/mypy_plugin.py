"""A plugin for mypy, which ignores the result of a class decorator: it makes ``@deployment`` known.

In ``pyproject.toml``::

    [tool.mypy]
    plugins = ["qserve.mypy_plugin"]
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.errorcodes import ATTR_DEFINED
from mypy.nodes import CallExpr, MemberExpr, TypeInfo
from mypy.plugin import AttributeContext, ClassDefContext, Plugin
from mypy.subtypes import find_member
from mypy.types import (
    AnyType,
    CallableType,
    Instance,
    Parameters,
    Type,
    TypeOfAny,
    get_proper_type,
    get_proper_types,
)

_DECORATOR = "qserve.define.deployments.deployment"
_METACLASS = "qserve.define.deployments.DeployedClass"
_PREPARED = "qserve.define.deployments.PreparedClass"
_CLASS_NODE = "qserve.graph.nodes.ClassNode."


class QservePlugin(Plugin):
    """Gives decorated classes ``bind`` and ``options``, and their nodes the methods of the class."""

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        return _set_metaclass if fullname == _DECORATOR else None

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """Handle ``node.method``, which is an attribute that ``ClassNode`` does not define."""
        return _type_of_method if fullname.startswith(_CLASS_NODE) else None


def _set_metaclass(context: ClassDefContext) -> bool:
    options = context.reason.arg_names if isinstance(context.reason, CallExpr) else []
    is_prepared = "init_args" in options or "init_kwargs" in options
    info = context.api.lookup_fully_qualified(_PREPARED if is_prepared else _METACLASS).node
    assert isinstance(info, TypeInfo)
    context.cls.info.metaclass_type = Instance(info, [])
    return True


def _type_of_method(context: AttributeContext) -> Type:
    """Return the type of ``node.method``: an ``UnboundMethod`` with the parameters and the result of the method."""
    untyped, node = get_proper_type(context.default_attr_type), get_proper_type(context.type)
    member = context.context
    if not (isinstance(untyped, Instance) and isinstance(node, Instance) and isinstance(member, MemberExpr)):
        return context.default_attr_type
    (user_class,) = get_proper_types(node.args)
    if not isinstance(user_class, Instance) or user_class.type.fallback_to_any:
        return untyped
    method = get_proper_type(find_member(member.name, user_class, user_class))
    if method is None:
        context.api.fail(f'{user_class} has no method "{member.name}"', member, code=ATTR_DEFINED)
        return AnyType(TypeOfAny.from_error)
    if not isinstance(method, CallableType):
        return untyped
    result = get_proper_type(method.ret_type)
    if isinstance(result, Instance) and result.type.fullname == "typing.Coroutine":
        result = get_proper_type(result.args[2])
    parameters = Parameters(method.arg_types, method.arg_kinds, method.arg_names, variables=method.variables)
    return untyped.copy_modified(args=[parameters, result])


def plugin(version: str) -> type[Plugin]:
    """Return the plugin; mypy calls this."""
    return QservePlugin
