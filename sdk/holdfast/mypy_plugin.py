"""A plugin for mypy that types stubs exactly: `plugins = ["holdfast.mypy_plugin"]` in mypy's
configuration.

The plugin types `client.get(Counter, "a")` and similar calls as a stub of `holdfast.stubs` for that
class. A method of the stub has the arguments of the class's handler, and a result as the stub gives
it.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.errorcodes import ATTR_DEFINED
from mypy.nodes import Decorator, FuncDef, OverloadedFuncDef
from mypy.plugin import AttributeContext, MethodSigContext, Plugin
from mypy.typeops import bind_self
from mypy.types import (
    AnyType,
    CallableType,
    FunctionLike,
    Instance,
    NoneType,
    Overloaded,
    Type,
    TypeOfAny,
    TypeType,
    get_proper_type,
)

_STUBS = "holdfast.stubs."
_MADE_BY = {
    ("holdfast.client.client.Client", "get"): "AsyncStub",
    ("holdfast.client.client.Client", "notify"): "AsyncNotifyStub",
    ("holdfast.client.blocking.BlockingClient", "get"): "BlockingStub",
    ("holdfast.client.blocking.BlockingClient", "notify"): "NotifyStub",
    ("holdfast.testing.Cluster", "get"): "BlockingStub",
    ("holdfast.testing.Cluster", "notify"): "NotifyStub",
    ("holdfast.object.Objects", "get"): "AsyncStub",
    ("holdfast.object.DurableObject", "notify"): "NotifyStub",
}
_AWAITABLES = ("typing.Coroutine", "typing.Awaitable", "typing.AwaitableGenerator")


class HoldfastPlugin(Plugin):
    """The plugin; the module's docstring says what it does."""

    def get_method_signature_hook(
        self, fullname: str
    ) -> Callable[[MethodSigContext], FunctionLike] | None:
        owner, _, method = fullname.rpartition(".")
        if (
            owner,
            method,
        ) in _MADE_BY or method == "notify":  # users' classes inherit `notify`
            return lambda context: _making(context, method)
        return None

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return _handler if fullname.startswith(_STUBS) else None


def _making(context: MethodSigContext, method: str) -> FunctionLike:
    """Return the signature of `get` or `notify`: for a class they return a stub of it."""
    signature = context.default_signature
    of = get_proper_type(context.type)
    if not isinstance(of, Instance) or not signature.arg_types:
        return signature
    stub = next(
        (
            stub
            for base in of.type.mro
            if (stub := _MADE_BY.get((base.fullname, method))) is not None
        ),
        None,
    )
    kind = get_proper_type(signature.arg_types[0])
    if stub is None or not isinstance(kind, TypeType):
        return signature
    return signature.copy_modified(
        ret_type=context.api.named_generic_type(f"{_STUBS}{stub}", [kind.item])
    )


def _handler(context: AttributeContext) -> Type:
    """Return the type of a stub's handler."""
    stub = get_proper_type(context.type)
    if not isinstance(stub, Instance) or not stub.args:
        return context.default_attr_type
    kind = get_proper_type(stub.args[0])
    name = getattr(context.context, "name", "")
    if not isinstance(kind, Instance):
        return context.default_attr_type
    found = kind.type.get(name)
    node = None if found is None else found.node
    signature = None
    if isinstance(node, FuncDef | OverloadedFuncDef):
        signature = get_proper_type(node.type)
    elif isinstance(node, Decorator):
        signature = get_proper_type(node.var.type)
    if name.startswith("_") or not isinstance(signature, FunctionLike):
        context.api.fail(
            f'"{kind.type.name}" has no handler "{name}"', context.context, code=ATTR_DEFINED
        )
        return AnyType(TypeOfAny.from_error)
    bound = bind_self(signature, kind)
    shape = stub.type.name
    if isinstance(bound, CallableType):
        return _shaped(bound, shape, context)
    return Overloaded([_shaped(item, shape, context) for item in bound.items])


def _shaped(handler: CallableType, stub: str, context: AttributeContext) -> CallableType:
    """Return the signature of a handler as this stub has it."""
    result: Type = get_proper_type(handler.ret_type)
    if isinstance(result, Instance) and result.type.fullname in _AWAITABLES:
        result = result.args[-1]
    if stub in ("NotifyStub", "AsyncNotifyStub"):
        result = NoneType()
    if stub in ("AsyncStub", "AsyncNotifyStub"):
        anything = AnyType(TypeOfAny.explicit)
        result = context.api.named_generic_type("typing.Coroutine", [anything, anything, result])
    return handler.copy_modified(ret_type=result)


def plugin(version: str) -> type[Plugin]:
    """Return the plugin's class. mypy calls this."""
    return HoldfastPlugin
