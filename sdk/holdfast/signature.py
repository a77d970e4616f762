"""Handlers: which methods of a class are handlers, and how their arguments are decoded and checked.

Arguments arrive in one of three forms: an array (positional), a map (named), or a map whose entry
"*" holds the positional arguments of a mixed call. They are decoded straight into the types of the
handler's hints, so a wrong argument never reaches the handler. Python itself fills in the defaults.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from holdfast import codec
from holdfast.errors import InternalError, UnfitArguments

F = TypeVar("F", bound=Callable[..., Any])
READS = "__holdfast_reads__"
_EMPTY_PAYLOADS = (b"", b"\x90", b"\x80", b"[]", b"{}", b"null", b"\xc0")
_POSITIONAL = "*"
_INTEGER = re.compile(r"-?[1-9][0-9]+")
_WANTED_INTEGER = re.compile(r"Expected `int(?: \| null)?`, got `str` - at `\$(.*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_WIDE_MAX = 1_000
"""How many integers of one call may come as text."""


def reads(handler: F) -> F:
    """Mark a handler that only reads: `@holdfast.reads`.

    A read does not wait for the object's turns, and turns do not wait for it. It runs on a fresh
    instance: this has no attributes that turns have set, and `on_activate` has not run. The read
    sees all that ended turns have stored. It does not see the writes of a running turn.

    The reply leaves when everything that the read saw is committed. If a read awaits something, it
    may see what turns store meanwhile. A write in a read raises RuntimeError.
    """
    setattr(handler, READS, True)
    return handler


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call of a handler, as functions registered with `@app.around` get it."""

    object: Any
    """The instance whose handler is called. `object.request` and `object.caller` describe the
    request.
    """
    method: str
    """The name of the handler."""
    arguments: dict[str, Any]
    """The arguments by name, as the handler gets them. Arguments that the caller left out are
    missing, even if they have a default.
    """
    _proceed: Callable[[], Any]

    async def proceed(self) -> Any:
        """Call the next function, or the handler itself if there is no other, and return its
        result.
        """
        result = self._proceed()
        return await result if inspect.isawaitable(result) else result


Around = Callable[[Invocation], Awaitable[Any]]


def invoke_around(
    arounds: tuple[Around, ...],
    instance: Any,
    method: str,
    arguments: dict[str, Any],
    handler: Callable[[], Any],
) -> Any:
    """Call a handler with these functions around it, the first one outermost. Return an awaitable
    of its result.
    """
    proceed = handler
    for around in reversed(arounds):
        proceed = functools.partial(around, Invocation(instance, method, arguments, proceed))
    return proceed()


class Sending:
    """Stands in for a handler when a call is stored, to be run later."""

    reads = False
    is_async = False

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.name = handler.name
        self.identity = tuple(
            blake2b(f"send {codec} {self.name}\0".encode(), digest_size=16)
            for codec in ("msgpack", "json")
        )

    def invoke(self, instance: Any, payload: bytes, is_json: bool = False) -> Any:
        """Fail: a stored call does not run here."""
        raise AssertionError(self.name)


def _arguments(where: str, signature: inspect.Signature) -> list[inspect.Parameter]:
    """Return the parameters of a handler without `self`. Raise TypeError if callers could not give
    one of them.
    """
    everything = list(signature.parameters.values())
    if not everything or everything[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise TypeError(f"{where} has no `self`: a handler must be a method")
    parameters = (
        everything[1:] if everything[0].kind is not inspect.Parameter.VAR_POSITIONAL else everything
    )
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(
                f"{where}: {parameter.name} is positional-only: remove the `/`, because callers"
                " may name arguments"
            )
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"{where}: *{parameter.name} cannot be called over the wire; name the arguments"
            )
    return parameters


class Handler:
    """One public method of a kind.

    Attributes: `name`; `identity`, the first part of a request's identity, for msgpack and for
    JSON; `function`, unbound; `is_async`; `returns`, the result's type hint (Any without one);
    `reads`, whether it runs beside the object's turns; `sending`, which stands in for it when a
    call is stored.

    Raises TypeError at registration if the method cannot be called over the wire (*args, **kwargs,
    hints whose values cannot be sent).
    """

    __slots__ = (
        "_arounds",
        "_by_count",
        "_named",
        "_named_json",
        "_names",
        "_positional_max",
        "_required",
        "function",
        "identity",
        "is_async",
        "name",
        "reads",
        "returns",
        "sending",
        "signature",
    )

    def __init__(self, name: str, function: Callable[..., Any], owner: str) -> None:
        where = f"{owner}.{name}"
        self.name = name
        self.identity = tuple(
            blake2b(f"{codec} {name}\0".encode(), digest_size=16) for codec in ("msgpack", "json")
        )
        self.function = function
        self.reads = bool(getattr(function, READS, False))
        self.sending = Sending(self)
        self._arounds: tuple[Around, ...] = ()
        self.is_async = inspect.iscoroutinefunction(function)
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{where} is a generator: a handler must return one value")
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except NameError as error:
            raise TypeError(f"{where}: a type hint cannot be resolved: {error}") from None
        self.signature = inspect.signature(function)
        parameters = _arguments(where, self.signature)
        self.returns = hints.get("return", Any)
        self._names = [p.name for p in parameters]
        try:
            types = [codec.with_bounds(hints.get(p.name, Any)) for p in parameters]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{where}: the bounds of an argument cannot be checked: {error}"
            ) from None
        self._required = [p.name for p in parameters if p.default is p.empty]
        positional = [
            t for t, p in zip(types, parameters, strict=True) if p.kind is not p.KEYWORD_ONLY
        ]
        self._positional_max = len(positional)
        least = sum(1 for p in parameters if p.default is p.empty and p.kind is not p.KEYWORD_ONLY)
        keyword_only_required = any(
            p.default is p.empty and p.kind is p.KEYWORD_ONLY for p in parameters
        )
        try:
            # For a call with n positional arguments: a decoder for a tuple of their types.
            for hint in (*types, self.returns):
                codec.check(hint)
            self._by_count: dict[int, Any] = {}
            if not keyword_only_required:
                for n in range(least, len(positional) + 1):
                    some = tuple(positional[:n])
                    self._by_count[n] = codec.decoder(tuple[some] if n else tuple[()])  # type: ignore[valid-type]
            fields = [
                (f"f{i}", t)
                if p.default is p.empty
                else (f"f{i}", typing.Union[t, msgspec.UnsetType], msgspec.UNSET)  # noqa: UP007
                for i, (t, p) in enumerate(zip(types, parameters, strict=True))
            ]
            named = msgspec.defstruct(
                "Arguments",
                fields,
                rename={f"f{i}": p.name for i, p in enumerate(parameters)},
                forbid_unknown_fields=True,
                kw_only=True,
            )
            self._named = codec.decoder(named)
            self._named_json = codec.json_decoder(named)
            codec.decoder(self.returns)
        except Exception as error:  # msgspec, or a class of the user's, may raise anything
            raise TypeError(f"{where}: a type hint cannot be sent over the wire: {error}") from None

    def surround(self, arounds: tuple[Around, ...]) -> None:
        """Call these functions around the handler, the first one outermost."""
        self._arounds = arounds
        self.is_async = True

    def invoke(self, instance: Any, payload: bytes, is_json: bool = False) -> Any:
        """Decode the payload and call the handler. Return its result, or its coroutine if
        `is_async`.

        Raises UnfitArguments, before any code of the handler ran, if the payload does not fit.
        """
        if self._arounds:
            named = self.bind(payload, is_json)
            handler = functools.partial(self.function, instance, **named)
            return invoke_around(self._arounds, instance, self.name, named, handler)
        if not is_json and payload:
            # The hot path: the first byte of a msgpack fixarray is its length.
            decoder = self._by_count.get(payload[0] - 0x90)
            if decoder is not None:
                try:
                    arguments = decoder.decode(payload)
                except Exception as error:
                    raise self._invalid(error) from None
                return self.function(instance, *arguments)
        return self.function(instance, **self.bind(payload, is_json))

    def bind(self, payload: bytes, is_json: bool) -> dict[str, Any]:
        """Return the arguments by name. Raise UnfitArguments if the payload does not fit.

        If the decoder for named arguments refuses the payload, the payload is decoded in plain
        types: to convert its form, or to explain the error.
        """
        if payload in _EMPTY_PAYLOADS:
            payload = b"{}" if is_json else b"\x80"
        decoder: Any = self._named_json if is_json else self._named
        try:
            decoded = decoder.decode(payload)
        except Exception:  # also RecursionError and UnicodeDecodeError
            raw = self._by_name(payload, is_json)
            encode: Any = codec.encode_json if is_json else codec.encode
            for _ in range(_WIDE_MAX):
                try:
                    decoded = decoder.decode(encode(raw))
                    break
                except Exception as error:
                    if not (is_json and _mend_wide(raw, str(error))):
                        raise self._invalid(error) from None
            else:
                raise self._error(f"was called with more than {_WIDE_MAX} integers as text", "$")
        if is_json:
            try:
                codec.encode(decoded)  # JSON has numbers that msgpack cannot store
            except OverflowError:
                raise self._error("was called with an integer of more than 64 bits", "$") from None
        values = msgspec.structs.astuple(decoded)
        return {
            name: v for name, v in zip(self._names, values, strict=True) if v is not msgspec.UNSET
        }

    def _by_name(self, payload: bytes, is_json: bool) -> dict[str, Any]:
        try:
            raw = msgspec.json.decode(payload) if is_json else codec.decode(payload)
        except Exception as error:  # also RecursionError and UnicodeDecodeError
            raise self._error(f"cannot read its arguments: {error}", "$") from None
        if isinstance(raw, list):
            raw = {_POSITIONAL: raw}
        if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
            raise self._error(
                "was called with wrong arguments: they must be an array (positional) or a map"
                f" (named), not {type(raw).__name__}",
                "$",
            )
        positional = raw.pop(_POSITIONAL, [])
        names = self._names[: self._positional_max]
        if not isinstance(positional, list) or len(positional) > len(names):
            given = len(positional) if isinstance(positional, list) else 1
            raise self._error(f"takes at most {len(names)} positional arguments, got {given}", "$")
        for name, value in zip(names, positional, strict=False):
            if name in raw:
                raise self._error(f"got {name!r} twice", f"$.{name}")
            raw[name] = value
        for name in raw:
            if name not in self._names:
                raise self._error(f"has no argument {name!r}", f"$.{name}")
        for name in self._required:
            if name not in raw:
                raise self._error(f"lacks {name!r}", f"$.{name}")
        return raw

    def _error(self, what: str, path: str) -> UnfitArguments:
        parameters = list(self.signature.parameters.values())[1:]
        usage = f"{self.name}{self.signature.replace(parameters=parameters)}"
        return UnfitArguments(
            f"{self.name}() {what}; its signature is {usage}", path=path, definite=True
        )

    def _invalid(self, error: Exception) -> UnfitArguments:
        """Return the error for a message of msgspec such as "Expected `int`, got `str` - at
        `$[0].x`". It names the argument, as callers know it.
        """
        text, _, path = str(error).partition(" - at `")
        path = path.rstrip("`") or "$"
        if match := re.match(r"\$\[(\d+)\](.*)", path):
            path = f"$.{self._names[int(match[1])]}{match[2]}"
        return self._error(f"was called with a wrong argument: {text} at {path}", path)


def _mend_wide(raw: Any, error: str) -> bool:
    """Replace a text by its integer where msgspec's error says that JSON arguments lack one. Return
    whether the text was such an integer.

    JavaScript can write integers beyond 2^53 only as text. No other text becomes a number.
    """
    found = _WANTED_INTEGER.fullmatch(error)
    if found is None:
        return False
    *way, last = [name or int(index) for name, index in _STEP.findall(found[1])] or [""]
    try:
        for step in way:
            raw = raw[step]
        text = raw[last]
    except (LookupError, TypeError):
        return False  # the integer is in a dict, and msgspec does not name its key
    if not (
        isinstance(text, str)
        and len(text) <= 20
        and _INTEGER.fullmatch(text)
        and abs(int(text)) > (1 << 53) - 1
    ):
        return False
    raw[last] = int(text)
    return True


def encode_arguments(positional: tuple[Any, ...], named: dict[str, Any]) -> bytes:
    """Return the msgpack payload of a call's arguments. `Handler.invoke` reads it."""
    if not named:
        return codec.encode(positional)
    if positional:
        return codec.encode({_POSITIONAL: positional, **named})
    return codec.encode(named)


def decode_result(data: bytes, returns: Any, what: str, method: str) -> Any:
    """Return a call's result as its handler's return hint says. Raise InternalError if the handler
    returned something else.
    """
    try:
        return codec.decode(data, returns)
    except msgspec.ValidationError as error:
        raise InternalError(
            f"{what}.{method}() ran, but its result does not fit its return hint: {error}"
        ) from None


def check_notified(kind: type | str, method: str) -> None:
    """Raise AttributeError if the class has no such handler. Raise TypeError if the handler only
    reads: a notification to it has no effect.
    """
    return_type(kind, method)
    if not isinstance(kind, str) and getattr(getattr(kind, method), READS, False):
        raise TypeError(
            f"{kind.__name__}.{method} only reads (@holdfast.reads), so a notification to it would"
            " have no effect"
        )


@functools.lru_cache(maxsize=4096)
def return_type(kind: type | str, method: str) -> Any:
    """Return the return type hint of a kind's method; Any if there is no hint or only the kind's
    name is known.

    Raises AttributeError if the class has no such handler, so that a typing error is found before
    the call is sent.
    """
    if isinstance(kind, str):
        return Any
    function = getattr(kind, method, None)
    if method.startswith("_") or not inspect.isfunction(function):
        handlers = [
            name
            for name, value in vars(kind).items()
            if not name.startswith("_") and inspect.isfunction(value)
        ]
        near = difflib.get_close_matches(method, handlers, n=1)
        raise AttributeError(
            f"{kind.__name__} has no handler"
            f" {method!r}{f'; did you mean {near[0]!r}?' if near else ''}"
        )
    return typing.get_type_hints(function, include_extras=True).get("return", Any)
