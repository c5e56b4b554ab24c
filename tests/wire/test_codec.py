"""Every registered class, built at random, survives the wire; no bytes do more than raise ProtocolError."""

import dataclasses
import random
import types
import typing
from enum import Enum
from typing import Any, get_args, get_origin

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fsd.protocol.chunk
import fsd.protocol.cluster
import fsd.protocol.metadata
import fsd.wire.handshake  # noqa: F401
from fsd.core.errors import ProtocolError
from fsd.core.ids import LayerId, SessionId
from fsd.namespace.operations import Create, Rename
from fsd.protocol.metadata import Execute, KeepAlive, LeaseMode
from fsd.wire.codec import decode, decode_number, encode, number_of, registered

PRODUCT = {number: cls for number, cls in registered().items() if cls.__module__.startswith(("fsd.", "metadata"))}


def example(hint: Any, chance: random.Random, depth: int = 0) -> Any:
    """A random value of a type, as the codec understands types."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union:
        option = chance.choice(get_args(hint))
        return None if option is types.NoneType else example(option, chance, depth)
    if get_origin(hint) is tuple:
        arguments = get_args(hint)
        if arguments[-1] is ...:
            return tuple(
                example(arguments[0], chance, depth + 1) for _ in range(chance.randrange(3 if depth < 3 else 1))
            )
        return tuple(example(argument, chance, depth + 1) for argument in arguments)
    if hasattr(hint, "_fields"):
        return hint(*[example(inner, chance, depth + 1) for inner in typing.get_type_hints(hint).values()])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return chance.choice(list(hint))
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(*[example(hints[field.name], chance, depth + 1) for field in dataclasses.fields(hint)])
    return {
        int: lambda: chance.choice([0, 1, -1, 255, 2**32, 2**63, 2**64 - 1, -(2**63)]),
        bool: lambda: chance.random() < 0.5,
        str: lambda: chance.choice(["", "a", "grüße", "x" * 300]),
        bytes: lambda: chance.randbytes(chance.choice([0, 1, 40, 300])),
        float: lambda: chance.choice([0.0, -1.5, 1e300]),
    }[hint]()


@pytest.mark.parametrize("cls", PRODUCT.values(), ids=lambda cls: cls.__name__)
def test_every_message_and_record_survives(cls):
    chance = random.Random(number_of(cls))
    for _ in range(25):
        value = example(cls, chance)
        assert decode(cls, encode(value)) == value
        assert decode_number(number_of(cls), encode(value)) == value


@settings(max_examples=400)
@given(st.sampled_from(sorted(PRODUCT)), st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_protocol_error(number, data):
    try:
        decode_number(number, data)
    except ProtocolError as error:
        assert "\n" not in str(error)


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(PRODUCT)),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255))),
)
def test_damaged_messages_raise_nothing_but_protocol_error(number, seed, damage):
    data = bytearray(encode(example(PRODUCT[number], random.Random(seed))))
    for place, byte in damage:
        data[place % len(data)] = byte
    try:
        decode_number(number, data)
    except ProtocolError as error:
        assert "\n" not in str(error)


def test_fields_that_a_newer_version_appended_are_ignored():
    assert decode(KeepAlive, msgpack.packb([7, False, "from the future"])) == KeepAlive(SessionId(7))


def test_missing_fields_take_their_defaults_and_required_ones_do_not():
    short = msgpack.packb([LayerId(1), 5, 0, 0, 1, b"a", 2, b"b"])
    assert decode(Rename, short) == Rename(LayerId(1), 5, 0, 0, 1, b"a", 2, b"b", 0)
    with pytest.raises(ProtocolError, match="KeepAlive has 0 fields"):
        decode(KeepAlive, msgpack.packb([]))


@pytest.mark.parametrize(
    "array",
    [["7"], [7.0], [None], [True], [[1]], [b"7"]],
)
def test_the_type_of_every_field_is_checked(array):
    with pytest.raises(ProtocolError):
        decode(KeepAlive, msgpack.packb(array))


def test_a_union_takes_only_its_own_classes():
    operation = Create(LayerId(1), 5, 0, 0, 1, b"a", 2, 0o644)
    good = Execute(SessionId(1), 1, 1, operation, LeaseMode.NONE, False)
    array = msgpack.unpackb(encode(good))
    array[3][0] = number_of(KeepAlive)
    with pytest.raises(ProtocolError, match="no such alternative"):
        decode(Execute, msgpack.packb(array))


def test_an_unknown_number_is_refused():
    with pytest.raises(ProtocolError, match="unknown message type 65535"):
        decode_number(65535, b"\x90")


def test_deep_nesting_is_refused():
    with pytest.raises(ProtocolError):
        decode(KeepAlive, b"\x91" * 5000 + b"\x01")


def test_numbers_never_move():
    """The numbers are the protocol: a change here breaks every running cluster."""
    assert {
        cls.__name__: number for number, cls in PRODUCT.items() if number in (1, 2, 3, 100, 120, 223, 301, 307, 401)
    } == {
        "Hello": 1,
        "Welcome": 2,
        "ErrorReply": 3,
        "Inode": 100,
        "Create": 120,
        "Execute": 223,
        "WriteChunk": 301,
        "Replicate": 307,
        "RegisterNode": 401,
    }
