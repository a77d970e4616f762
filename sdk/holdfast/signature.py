"""Handlers: which methods of a class are handlers, and how their arguments are decoded and checked.

Arguments arrive as an array (positional), a map (named), or a map whose entry "*" holds the
positional ones of a mixed call. They are decoded straight into the types of the handler's hints, so
a wrong one never reaches the handler; the defaults stay Python's own.
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
"""Integers of one call that may come as text."""


def reads(handler: F) -> F:
    """Mark a handler as one that only reads: `@holdfast.reads`. It does not wait for the object's
    turns, and they do not wait for it.

    It runs on a fresh instance, which has none of the attributes that turns have set and for which
    `on_activate` has not run, over what turns that ended have stored: it does not see what a
    running turn has written so far. Its reply leaves once all that it saw is committed. A read that
    waits (`await`) may see what turns store meanwhile. It cannot write: that raises RuntimeError.
    """
    setattr(handler, READS, True)
    return handler


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call of a handler, for functions that are set around handlers with `@app.around`."""

    object: Any
    """The instance whose handler is called; `object.request` and `object.caller` say for whom."""
    method: str
    arguments: dict[str, Any]
    """By name, as the handler gets them. The defaults of those that the caller left out are not in
    it."""
    _proceed: Callable[[], Any]

    async def proceed(self) -> Any:
        """Call what is next, at last the handler itself; its result."""
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
    """Call a handler with these functions around it, the first one outermost: an awaitable of its
    result."""
    proceed = handler
    for around in reversed(arounds):
        proceed = functools.partial(around, Invocation(instance, method, arguments, proceed))
    return proceed()


class Sending:
    """Stands in for a handler whose call is stored, to be run later."""

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
        """It is not run here."""
        raise AssertionError(self.name)


class Handler:
    """One public method of a kind.

    Attributes: `name`; `identity`, the beginning of what identifies a request to it, for msgpack
    and for JSON; `function`, unbound; `is_async`; `returns`, the result's type hint (Any without
    one); `reads`, whether it runs beside the object's turns; `sending`, which stands in for it when
    a call is stored. Raises TypeError at registration for what cannot be called over the wire
    (*args, **kwargs, hints that are not data).
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
            raise TypeError(f"{where} is a generator; a handler returns one value")
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except NameError as error:
            raise TypeError(f"{where}: a type hint cannot be resolved: {error}") from None
        self.signature = inspect.signature(function)
        everything = list(self.signature.parameters.values())
        if not everything or everything[0].kind in (
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        ):
            raise TypeError(f"{where} takes no `self`: a handler is a method")
        parameters = (
            everything[1:]
            if everything[0].kind is not inspect.Parameter.VAR_POSITIONAL
            else everything
        )
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise TypeError(
                    f"{where}: {parameter.name} may be given by position only: leave the `/` out,"
                    " callers may name arguments"
                )
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(
                    f"{where}: *{parameter.name} cannot be called over the wire; name the arguments"
                )
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
            # For a call with n positional arguments: the decoder of a tuple of exactly their types.
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
        except Exception as error:  # what msgspec, or a class of the user's, raises of a hint
            raise TypeError(f"{where}: a type hint cannot be sent over the wire: {error}") from None

    def surround(self, arounds: tuple[Around, ...]) -> None:
        """Have these functions called around it, the first one outermost."""
        self._arounds = arounds
        self.is_async = True

    def invoke(self, instance: Any, payload: bytes, is_json: bool = False) -> Any:
        """Decode the payload and call the handler: its result, or its coroutine when `is_async`.

        Raises UnfitArguments, before anything of the handler ran, when the payload does not fit.
        """
        if self._arounds:
            named = self.bind(payload, is_json)
            handler = functools.partial(self.function, instance, **named)
            return invoke_around(self._arounds, instance, self.name, named, handler)
        if not is_json and payload:
            # A msgpack fixarray says its length in its first byte: the hot path, decoded without a
            # detour.
            decoder = self._by_count.get(payload[0] - 0x90)
            if decoder is not None:
                try:
                    arguments = decoder.decode(payload)
                except Exception as error:
                    raise self._invalid(error) from None
                return self.function(instance, *arguments)
        return self.function(instance, **self.bind(payload, is_json))

    def bind(self, payload: bytes, is_json: bool) -> dict[str, Any]:
        """The arguments by name. Raises UnfitArguments when the payload does not fit.

        What the named decoder does not take at once is taken apart, to be mended or explained.
        """
        if payload in _EMPTY_PAYLOADS:
            payload = b"{}" if is_json else b"\x80"
        decoder: Any = self._named_json if is_json else self._named
        try:
            decoded = decoder.decode(payload)
        except Exception:  # RecursionError and UnicodeDecodeError are no errors of msgspec's
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
                raise self._error(f"has more than {_WIDE_MAX} integers that came as text", "$")
        if is_json:
            try:
                codec.encode(decoded)  # JSON knows numbers that nothing here can store or return
            except OverflowError:
                raise self._error("was called with an integer of more than 64 bits", "$") from None
        values = msgspec.structs.astuple(decoded)
        return {
            name: v for name, v in zip(self._names, values, strict=True) if v is not msgspec.UNSET
        }

    def _by_name(self, payload: bytes, is_json: bool) -> dict[str, Any]:
        try:
            raw = msgspec.json.decode(payload) if is_json else codec.decode(payload)
        except (
            Exception
        ) as error:  # RecursionError and UnicodeDecodeError are no errors of msgspec's
            raise self._error(f"cannot read its arguments: {error}", "$") from None
        if isinstance(raw, list):
            raw = {_POSITIONAL: raw}
        if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
            raise self._error(
                f"arguments are an array (positional) or a map (named), not {type(raw).__name__}",
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
        return UnfitArguments(f"{self.name}() {what}; it is {usage}", path=path, definite=True)

    def _invalid(self, error: Exception) -> UnfitArguments:
        """msgspec says "Expected `int`, got `str` - at `$[0].x`"; callers know the argument by its
        name."""
        text, _, path = str(error).partition(" - at `")
        path = path.rstrip("`") or "$"
        if match := re.match(r"\$\[(\d+)\](.*)", path):
            path = f"$.{self._names[int(match[1])]}{match[2]}"
        return self._error(f"was called with a wrong argument: {text} at {path}", path)


def _mend_wide(raw: Any, error: str) -> bool:
    """Make a number of a text that came from JSON where msgspec's error says that an integer was
    expected; whether that was one.

    JavaScript can write integers beyond 2^53 as text only. No other text becomes a number.
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
        return False  # within a dict, of which msgspec does not say where
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
    """The msgpack payload of a call's arguments; the inverse of what `Handler.invoke` reads."""
    if not named:
        return codec.encode(positional)
    if positional:
        return codec.encode({_POSITIONAL: positional, **named})
    return codec.encode(named)


def decode_result(data: bytes, returns: Any, what: str, method: str) -> Any:
    """A call's result as its handler's return hint says. Raises InternalError when the handler
    returned something else."""
    try:
        return codec.decode(data, returns)
    except msgspec.ValidationError as error:
        raise InternalError(
            f"{what}.{method}() was answered, but with what its hint does not allow: {error}"
        ) from None


def check_notified(kind: type | str, method: str) -> None:
    """Raises AttributeError when the class has no such handler, TypeError when that only reads:
    there is nothing to tell it."""
    return_type(kind, method)
    if not isinstance(kind, str) and getattr(getattr(kind, method), READS, False):
        raise TypeError(
            f"{kind.__name__}.{method} only reads (@holdfast.reads): it has no use for a"
            " notification"
        )


@functools.lru_cache(maxsize=4096)
def return_type(kind: type | str, method: str) -> Any:
    """The return type hint of a method of a kind's class; Any where there is none, or only a name
    is known.

    Raises AttributeError when the class has no such handler: a typing error is better told before
    it travels.
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
