"""The pool that hashes passwords, counted and held up."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from src.core.exceptions import ServiceUnavailableException
from src.core.hash_pool import HashKind, HashPool
from tests.support.service import Service

Result = TypeVar("Result")

CLIENT_ADDRESS = "127.0.0.1"  # as httpx's transport gives it to the application


class CountingPool(HashPool):
    """The real pool, which also counts, and notes for whom it hashes in which order."""

    def __init__(self, *, threads: int, queue_size: int) -> None:
        super().__init__(threads=threads, queue_size=queue_size)
        self.count = 0
        self.served = list[tuple[HashKind, str]]()

    async def run(self, work: Callable[[], Result], *, kind: HashKind, origin: str, **options: Any) -> Result:
        def note_and_work() -> Result:
            self.served.append((kind, origin))
            return work()

        self.count += 1
        return await super().run(note_and_work, kind=kind, origin=origin, **options)


class BusyPool(HashPool):
    """One in which every job loses its place, or whose callers have gone by the time of their turn."""

    async def run(self, *_args: Any, **_options: Any) -> Any:
        raise ServiceUnavailableException


def count_hashes(service: Service, *, threads: int = 2, queue_size: int = 128) -> CountingPool:
    pool = service.hash_pool = CountingPool(threads=threads, queue_size=queue_size)
    return pool


async def hold(
    pool: HashPool, gate: Awaitable[None], *, jobs: int, kind: HashKind = HashKind.LOG_IN
) -> list[asyncio.Task[None]]:
    """Fill the pool with jobs that wait for the gate, from where the tests' client is: turns between them are in the
    order of their coming."""

    async def wait_at_gate() -> bool:
        await asyncio.shield(gate)
        return False

    tasks = [
        asyncio.create_task(pool.run(lambda: None, kind=kind, origin=CLIENT_ADDRESS, is_disconnected=wait_at_gate))
        for _ in range(jobs)
    ]
    await wait_until(lambda: pool.waiting >= jobs - 2)
    return tasks


async def start_waiting(pool: HashPool, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """Start a request and let it run until it waits to hash."""
    waiting = pool.waiting
    task = asyncio.create_task(work)
    await wait_until(lambda: pool.waiting > waiting or task.done())
    assert not task.done()
    return task


async def wait_until(condition: Callable[[], bool]) -> None:
    """Let others run until the condition holds; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
