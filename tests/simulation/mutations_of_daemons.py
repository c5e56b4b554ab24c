"""Planted bugs in what lets another process go on with a client's session; see tests.simulation.mutations."""

from collections.abc import Iterator
from typing import Any

import fsd.client.answers
import fsd.client.chunks
import fsd.client.resume
import fsd.client.statelog
from tests.simulation.mutations import Mutation, Patch, nothing
from tests.simulation.nemesis import DAEMONS, MOMENTS, Nemesis

LOST_RECORDS = 3


def lose_the_end_of_the_log() -> list[Patch]:
    read = fsd.client.statelog.read

    def shorter(directory: Any) -> Iterator[Any]:
        yield from list(read(directory))[:-LOST_RECORDS]

    return [(fsd.client.statelog, "read", shorter)]


def resend_the_journal_under_new_numbers() -> list[Patch]:
    return [(fsd.client.resume, "sent_before", nothing)]


def forget_handles() -> list[Patch]:
    return [(fsd.client.resume, "handles_of", lambda restored: [])]


def carry_out_calls_again() -> list[Patch]:
    async def find(self: Any, kind: Any) -> None:
        return None

    return [(fsd.client.answers.Answers, "find", find)]


def number_chunk_requests_from_the_beginning() -> list[Patch]:
    return [(fsd.client.chunks, "first_number", lambda incarnation: 1)]


def answer_recalls_before_the_bytes_are_known() -> list[Patch]:
    prepare = fsd.client.resume.Resume.prepare

    def hasty(self: Any) -> None:
        prepare(self)
        self._core.restored.set()

    return [(fsd.client.resume.Resume, "prepare", hasty)]


def forget_requests_under_way() -> list[Patch]:
    prepare = fsd.client.resume.Resume.prepare

    def forgetful(self: Any) -> None:
        self._restored.requests.clear()
        prepare(self)

    return [(fsd.client.resume.Resume, "prepare", forgetful)]


daemons = {
    "faults": tuple(DAEMONS),
    "keeps_state": True,
    "strikes": 12,
    "strike_pause_s": 0.3,
    "clients": 2,
    "workers": 2,
    "steps": 60,
    "think_s": 0.05,
}

batches = {**daemons, "faults": (Nemesis.kill_daemon_before_a_batch_is_answered,)}

MUTATIONS_OF_DAEMONS = [
    Mutation("lose the end of the log", lose_the_end_of_the_log, 20, daemons),
    Mutation("resend the journal under new numbers", resend_the_journal_under_new_numbers, 60, batches),
    Mutation("forget handles", forget_handles, 10, daemons),
    Mutation("carry out calls again", carry_out_calls_again, 40, daemons),
    Mutation("number chunk requests from the beginning", number_chunk_requests_from_the_beginning, 20, daemons),
    Mutation("answer recalls before the bytes are known", answer_recalls_before_the_bytes_are_known, 60, daemons),
    Mutation("forget requests under way", forget_requests_under_way, 60, {**daemons, "faults": (*DAEMONS, *MOMENTS)}),
]
