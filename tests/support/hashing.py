"""The pool that hashes passwords, counted and held up."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from src.core.passwords import HashPool
from tests.support.service import Service

Result = TypeVar("Result")


class CountingPool(HashPool):
    """The real pool, which also counts."""

    count = 0

    async def run(self, work: Callable[[], Result], **options: Any) -> Result:
        self.count += 1
        return await super().run(work, **options)


def count_hashes(service: Service) -> CountingPool:
    pool = service.hash_pool = CountingPool(threads=2, queue_size=128)
    return pool


async def hold(pool: HashPool, gate: Awaitable[None], *, jobs: int) -> list[asyncio.Task[None]]:
    """Fill the pool with jobs that wait for the gate."""

    async def wait_at_gate() -> bool:
        await asyncio.shield(gate)
        return False

    tasks = [
        asyncio.create_task(pool.run(lambda: None, queue_share=1.0, is_disconnected=wait_at_gate)) for _ in range(jobs)
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
