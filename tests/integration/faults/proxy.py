"""A TCP proxy that delays and loses: TCP hides a lost packet, so what it loses are connections.

    python -m tests.integration.faults.proxy LISTEN TARGET      a line `DELAY_S LOSS` on stdin changes what it does

Every piece of bytes waits up to DELAY_S (in order); with probability LOSS its connection is reset instead.
"""

import random
import sys

import trio

PIECE = 65_536
LONGEST_LINE = 100


class Trouble:
    delay_s = 0.0
    loss = 0.0


async def pump(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        async for data in source:
            if random.random() < Trouble.loss:
                break
            if Trouble.delay_s:
                await trio.sleep(random.uniform(0, Trouble.delay_s))
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the other side ends as well
    finally:
        scope.cancel()


async def serve(listen: str, target: str) -> None:
    host, _, port = target.rpartition(":")

    async def handle(stream: trio.SocketStream) -> None:
        try:
            with trio.fail_after(10):
                other = await trio.open_tcp_stream(host, int(port))
        except (OSError, trio.TooSlowError):
            return  # refused: the stream is closed by the server
        async with other, trio.open_nursery() as nursery:
            nursery.start_soon(pump, stream, other, nursery.cancel_scope)
            nursery.start_soon(pump, other, stream, nursery.cancel_scope)

    own, _, own_port = listen.rpartition(":")
    await trio.serve_tcp(handle, int(own_port), host=own)


async def main(listen: str, target: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listen, target)
        orders = trio.lowlevel.FdStream(0)
        text = b""
        async for data in orders:
            text = (text + data)[-LONGEST_LINE:]
            if text.endswith(b"\n"):
                delay, loss = text.split()[-2:]
                Trouble.delay_s, Trouble.loss = float(delay), float(loss)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:3])
