"""The scenarios of test_server see each rule's absence: with its function taken away, one of them fails."""

import inspect
from contextlib import ExitStack
from unittest.mock import patch

import pytest

from chunkserver import reader, replica
from tests.chunkserver import test_server as scenarios


def nothing(*_, **__):
    return None


def none(*_, **__):
    return []


def never(*_, **__):
    return False


def newer(*, present, order, **_):
    return present < order


PLANTED = [
    (replica, "must_answer", none, scenarios.test_what_was_written_is_read_and_both_copies_are_equal),
    (replica, "already_applied", never, scenarios.test_a_repeated_request_number_is_carried_out_once),
    (replica, "already_applied", never, scenarios.test_a_late_write_does_not_bring_a_removed_chunk_back),
    (replica, "settle_list", none, scenarios.test_takeover_settles_what_was_in_flight),
    (replica, "accepts", newer, scenarios.test_what_a_returning_node_alone_had_is_overwritten),
    (replica, "check_lease", nothing, scenarios.test_nothing_is_served_after_the_lease),
    (replica, "check_fence", nothing, scenarios.test_an_evicted_session_is_refused),
    (replica, "check_asker", nothing, scenarios.test_stale_askers_are_refused),
    (replica, "check_primary", nothing, scenarios.test_stale_askers_are_refused),
    (reader, "verify_stored", nothing, scenarios.test_a_rotten_block_is_repaired_from_the_other_member),
    (reader, "verify_stored", nothing, scenarios.test_rot_without_another_copy_is_an_error_and_never_wrong_bytes),
]


MASKING_EACH_OTHER = ("check_promise", "check_epoch", "check_sender")


async def test_a_member_without_any_epoch_check_is_seen(autojump_clock, monkeypatch):
    with ExitStack() as planted:
        for name in MASKING_EACH_OTHER:
            planted.enter_context(patch.object(replica, name, nothing))
        with pytest.RaisesGroup(pytest.fail.Exception, flatten_subgroups=True):
            await scenarios.test_a_deposed_primary_cannot_write_through_its_old_members(autojump_clock, monkeypatch)


@pytest.mark.parametrize(("module", "name", "instead", "scenario"), PLANTED)
async def test_a_planted_bug_is_seen(autojump_clock, monkeypatch, module, name, instead, scenario):
    known = {"autojump_clock": autojump_clock, "monkeypatch": monkeypatch, "who_heard": 0}
    arguments = {key: known[key] for key in inspect.signature(scenario).parameters}
    failed = False
    with patch.object(module, name, instead):
        try:
            await scenario(**arguments)
        except BaseException as error:
            failed = _is_failure(error)
    assert failed, f"{name} is gone and {scenario.__name__} does not see it"


def _is_failure(error):
    """A failed assertion or expectation, not a cancellation or a mistake of this test."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_failure(inner) for inner in error.exceptions)
    return isinstance(error, AssertionError | pytest.fail.Exception | replica.BaseMismatch | TimeoutError) or (
        type(error).__name__ == "TooSlowError"
    )
