"""Dataclass to bytes and back, by position, with msgpack. The only importer of msgpack.

A class becomes encodable by `@wire(number)`: its fields are packed as an array in the order of their declaration, so
fields may only be appended, with defaults. Decoding checks the type of every field, refuses a short array whose
missing fields have no default, and ignores fields that a newer version appended. Allowed field types: int, bool, str,
bytes, float, Enum, NamedTuple, a `@wire` class, `X | None`, a union of `@wire` classes (packed with its number),
`tuple[X, ...]`, `tuple[X, Y]`.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# (this module is where untyped data becomes typed: every value is checked by its converter)

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from fsd.core.errors import ProtocolError
from fsd.wire.frame import MAX_MESSAGE

T = TypeVar("T")
Convert = Callable[[Any], Any]

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_MAX_ITEMS = 65_536


@dataclasses.dataclass(slots=True)
class _Format:
    number: int
    cls: type[Any]
    names: tuple[str, ...] = ()
    required: int = 0
    encoders: tuple[Convert | None, ...] = ()
    decoders: tuple[Convert, ...] = ()
    plain: bool = False


_by_number: dict[int, _Format] = {}
_by_class: dict[type[Any], _Format] = {}


def wire(number: int) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass under `number`, its type on the wire and in unions."""

    def register(cls: type[T]) -> type[T]:
        assert number not in _by_number, f"{cls.__name__} and {_by_number[number].cls.__name__} are both {number}"
        _by_number[number] = _by_class[cls] = _Format(number, cls)
        return cls

    return register


def number_of(cls: type[Any]) -> int:
    """The number under which a class was registered."""
    return _by_class[cls].number


def number_of_message(message: Any) -> int:
    """The number of an instance's class."""
    return _by_class[type(message)].number


def registered() -> dict[int, type[Any]]:
    """Every encodable class by its number."""
    return {number: form.cls for number, form in _by_number.items()}


def encode(value: Any) -> bytes:
    """The bytes of an instance of a registered class."""
    return cast(bytes, msgpack.packb(_to_array(_ready(type(value)), value), use_bin_type=True))


def decode(cls: type[T], data: bytes | bytearray | memoryview) -> T:
    """The instance of `cls` that `data` holds. Raises ProtocolError if it holds anything else."""
    return cast(T, _from_array(_ready(cls), _unpack(data)))


def decode_number(number: int, data: bytes | bytearray | memoryview) -> Any:
    """The message of type `number`. Raises ProtocolError for an unknown number or bytes that do not fit it."""
    form = _by_number.get(number)
    if form is None:
        raise ProtocolError(f"unknown message type {number}")
    return _from_array(_ready(form.cls), _unpack(data))


def _unpack(data: bytes | bytearray | memoryview) -> Any:
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            max_str_len=MAX_MESSAGE,
            max_bin_len=MAX_MESSAGE,
            max_array_len=_MAX_ITEMS,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"damaged message: {type(error).__name__} {error}"[:200]) from None


def _to_array(form: _Format, value: Any) -> list[Any]:
    return [
        getattr(value, name) if encoder is None else encoder(getattr(value, name))
        for name, encoder in zip(form.names, form.encoders, strict=True)
    ]


def _from_array(form: _Format, array: Any) -> Any:
    if type(array) is not list:
        raise ProtocolError(f"{form.cls.__name__} is not an array but {type(array).__name__}")
    values = cast(list[Any], array)
    if len(values) < form.required:
        raise ProtocolError(f"{form.cls.__name__} has {len(values)} fields of at least {form.required}")
    try:
        return form.cls(*[decoder(item) for decoder, item in zip(form.decoders, values, strict=False)])
    except (_Unfit, ValueError) as error:
        raise ProtocolError(f"{form.cls.__name__}: {error}"[:300]) from None


class _Unfit(Exception):
    pass


def _ready(cls: type[Any]) -> _Format:
    """The format of a class, its converters made at first use (so that classes may refer to later ones)."""
    form = _by_class.get(cls)
    if form is None:
        raise TypeError(f"{cls.__name__} is not a @wire class")
    if not form.names and dataclasses.fields(cls):
        hints = typing.get_type_hints(cls)
        fields = dataclasses.fields(cls)
        form.encoders = tuple(_encoder(hints[field.name]) for field in fields)
        form.decoders = tuple(_decoder(hints[field.name]) for field in fields)
        form.required = sum(
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING for field in fields
        )
        form.names = tuple(field.name for field in fields)
    return form


def _bare(hint: Any) -> Any:
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    return hint


def _union(hint: Any) -> tuple[list[Any], bool] | None:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [option for option in typing.get_args(hint) if option is not types.NoneType]
        return options, len(options) < len(typing.get_args(hint))
    return None


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _encoder(hint: Any) -> Convert | None:
    """None where the value can go to msgpack as it is."""
    hint = _bare(hint)
    union = _union(hint)
    if union:
        return _union_encoder(*union)
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        inner = [_encoder(argument) for argument in arguments if argument is not ...]
        if all(encoder is None for encoder in inner):
            return None
        if len(arguments) == 2 and arguments[1] is ...:
            each = cast(Convert, inner[0])
            return lambda items: [each(item) for item in items]
        return lambda items: [item if e is None else e(item) for e, item in zip(inner, items, strict=True)]
    if _is_named_tuple(hint):
        inner = [_encoder(item) for item in typing.get_type_hints(hint).values()]
        if all(encoder is None for encoder in inner):
            return None
        return lambda items: [item if e is None else e(item) for e, item in zip(inner, items, strict=True)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda item: item.value
    if hint in _by_class:
        return lambda item: _to_array(_ready(hint), item)
    return None


def _union_encoder(options: list[Any], optional: bool) -> Convert | None:
    if len(options) == 1:
        inner = _encoder(options[0])
        return None if inner is None else lambda item: None if item is None else inner(item)

    def encode_tagged(item: Any) -> Any:
        if item is None and optional:
            return None
        form = _ready(cast(type[Any], type(item)))
        return [form.number, _to_array(form, item)]

    return encode_tagged


def _decoder(hint: Any) -> Convert:
    hint = _bare(hint)
    union = _union(hint)
    if union:
        return _union_decoder(*union)
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        if len(arguments) == 2 and arguments[1] is ...:
            return _sequence_decoder(_decoder(arguments[0]))
        return _fixed_decoder([_decoder(argument) for argument in arguments], tuple)
    if _is_named_tuple(hint):
        inner = [_decoder(item) for item in typing.get_type_hints(hint).values()]
        return _fixed_decoder(inner, lambda items: hint(*items))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    if hint in _by_class:
        return lambda item: _from_array(_ready(hint), item)
    return _SCALARS[hint]


def _union_decoder(options: list[Any], optional: bool) -> Convert:
    if len(options) == 1:
        inner = _decoder(options[0])
        return lambda item: None if item is None else inner(item)
    forms = {_by_class[option].number: option for option in options}

    def decode_tagged(item: Any) -> Any:
        if item is None and optional:
            return None
        if type(item) is not list or len(cast(list[Any], item)) != 2 or item[0] not in forms:
            raise _Unfit("no such alternative")
        return _from_array(_ready(forms[item[0]]), item[1])

    return decode_tagged


def _sequence_decoder(inner: Convert) -> Convert:
    def decode_sequence(items: Any) -> Any:
        if type(items) is not list:
            raise _Unfit(f"expected an array, got {type(items).__name__}")
        return tuple(inner(item) for item in cast(list[Any], items))

    return decode_sequence


def _fixed_decoder(inner: list[Convert], make: Convert) -> Convert:
    def decode_fixed(items: Any) -> Any:
        if type(items) is not list or len(cast(list[Any], items)) != len(inner):
            raise _Unfit(f"expected an array of {len(inner)}")
        return make([decoder(item) for decoder, item in zip(inner, cast(list[Any], items), strict=True)])

    return decode_fixed


def _check_int(item: Any) -> int:
    if type(item) is not int or not _INT_MIN <= item <= _INT_MAX:
        raise _Unfit(f"expected an integer, got {type(item).__name__}")
    return item


def _checker(kind: type[T]) -> Convert:
    def check(item: Any) -> Any:
        if type(item) is not kind:
            raise _Unfit(f"expected {kind.__name__}, got {type(item).__name__}")
        return item

    return check


_SCALARS: dict[Any, Convert] = {
    int: _check_int,
    bool: _checker(bool),
    str: _checker(str),
    bytes: _checker(bytes),
    float: _checker(float),
}
