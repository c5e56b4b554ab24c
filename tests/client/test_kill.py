"""kill -9 of a real client process, again and again; what it had answered is there, once."""

import random
import signal
import subprocess
import sys
import threading

import pytest
import trio

from fsd.client.filesystem import open_filesystem
from fsd.client.options import ClientOptions
from fsd.core.errors import FsError, NotFound
from fsd.core.ids import ROOT_INO
from fsd.runtime.local import real_runtime
from fsd.runtime.localstate import LocalState
from tests.client.cluster import get
from tests.client.servers import REPOSITORY, servers
from tests.client.victim import FILES, HELD, Calls

COUNT = 1500
KILLS = 8
PATIENCE_S = 60


def run_victim(address, state, seed, first, kill_after_s):
    """Kill it after a while; the number of the first call that was not answered, or None if all were."""
    words = ["-m", "tests.client.victim", address, state, str(seed), str(first), str(COUNT)]
    victim = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    answered, done, timer = first - 1, False, None
    guard = threading.Timer(PATIENCE_S, victim.kill)
    guard.start()
    for line in victim.stdout:
        if timer is None:  # only a process that has come so far counts
            timer = threading.Timer(kill_after_s, victim.kill)
            timer.start()
        if line == b"waiting\n":
            done = True
            victim.kill()
            break
        answered = int(line)
    errors = victim.stderr.read().decode()
    assert victim.wait() == -signal.SIGKILL, errors
    guard.cancel()
    assert timer is not None, f"no call was answered in {PATIENCE_S} s: {errors}"
    timer.cancel()
    return None if done else answered + 1


@pytest.mark.parametrize("seed", [1])
def test_what_was_answered_is_there_once(tmp_path, seed):
    rng, state = random.Random(seed), str(tmp_path / "state")
    with servers(tmp_path) as address:
        at, lives = 0, 0
        while at is not None:
            lives += 1
            at = run_victim(address, state, seed, at, rng.uniform(0.02, 0.4) if lives <= KILLS else PATIENCE_S)
        assert lives > 2
        calls = Calls(seed)
        for number in range(COUNT):
            calls.next(number)
        trio.run(check, address, state, calls.model)


async def check(address, state, model):
    options = ClientOptions(name="check")
    async with open_filesystem(real_runtime(), (address,), "default", options, None, LocalState(state)) as fs:
        assert fs.resumed
        handle = fs.restored_handles[HELD]
        assert await fs.read(handle, 0, 1 << 20) == model.held
        assert await get(fs, b"log") == model.log
        for name in FILES:
            if name in model.names:
                assert await get(fs, name) == model.names[name]
            else:
                with pytest.raises(NotFound):
                    await fs.lookup(ROOT_INO, name)
        await fs.release(handle)
        found = {entry.name for entry in await fs.read_directory(await fs.open_directory(ROOT_INO), 0, False)}
        assert found == {b"log", *model.names, *model.directories}


def test_a_process_that_cannot_reach_its_server_leaves_the_state_alone(tmp_path):
    state = tmp_path / "state"
    with servers(tmp_path) as address:
        assert run_victim(address, str(state), 2, 0, 0.2) is not None
    kept = sorted(state.iterdir())

    async def try_to_open():
        options = ClientOptions(name="late", hard=False, timeout_s=0.5)
        async with open_filesystem(real_runtime(), (address,), "default", options, None, LocalState(str(state))):
            raise AssertionError("nobody is there")

    with pytest.raises(FsError):
        trio.run(try_to_open)
    assert [path for path in sorted(state.iterdir()) if path.suffix == ".state"] == [
        path for path in kept if path.suffix == ".state"
    ]
