"""Asking again: with growing, jittered pauses, for as long as the error says that it can help."""

import random as random_module
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from fsd.core.errors import FsError, Retry

T = TypeVar("T")


def pause_s(attempt: int, random: random_module.Random, first_s: float, longest_s: float) -> float:
    """Full-jitter exponential back-off: between half and all of first_s * 2**attempt, at most longest_s."""
    ceiling = min(longest_s, first_s * 2 ** min(attempt, 30))
    return ceiling * (0.5 + random.random() / 2)


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    random: random_module.Random,
    first_s: float = 0.02,
    longest_s: float = 1.0,
) -> T:
    """The result of `call`, repeated while its FsError can be helped by that. Has no deadline: set one outside."""
    attempt = 0
    while True:
        try:
            return await call()
        except FsError as error:
            if error.retry is Retry.NEVER:
                raise
        await trio.sleep(pause_s(attempt, random, first_s, longest_s))
        attempt += 1
