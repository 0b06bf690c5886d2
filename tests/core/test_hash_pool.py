import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from src.core.exceptions import ServiceUnavailableException
from src.core.hash_pool import NICENESS, HashKind, HashPool, never_disconnected

LOG_IN, SIGN_UP, ACCOUNT_CHANGE = HashKind


async def run(
    pool: HashPool, work: Callable[[], None] = lambda: None, *, kind: HashKind = LOG_IN, origin: str = "ana"
) -> None:
    await pool.run(work, kind=kind, origin=origin, is_disconnected=never_disconnected)


@dataclass
class BusyPool:
    """A pool of one thread, which is taken until the pool is released, with 8 places for each kind. `served` names the
    jobs in the order of their turns."""

    pool: HashPool
    gate: threading.Event = field(default_factory=threading.Event)
    served: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def add(self, *names: str, kind: HashKind = LOG_IN) -> list[asyncio.Task[None]]:
        """Queue jobs, each of the origin that the first letter of its name stands for."""
        tasks = [asyncio.create_task(self._run(name, kind)) for name in names]
        self.tasks += tasks
        await asyncio.sleep(0)
        return tasks

    async def release(self) -> list[str]:
        self.gate.set()
        await asyncio.wait_for(asyncio.gather(*self.tasks, return_exceptions=True), timeout=10)
        return self.served

    async def _run(self, name: str, kind: HashKind) -> None:
        await run(self.pool, lambda: self.served.append(name), kind=kind, origin=name[0])


@pytest_asyncio.fixture
async def busy() -> AsyncIterator[BusyPool]:
    busy = BusyPool(HashPool(threads=1, queue_size=8))
    busy.tasks.append(asyncio.create_task(run(busy.pool, lambda: _wait(busy.gate))))
    await asyncio.sleep(0)
    yield busy
    await busy.release()
    await assert_one_thread(busy.pool)


async def assert_one_thread(pool: HashPool) -> None:
    """Whatever has happened, a job is served, and the next one waits for it."""
    gate = threading.Event()
    jobs = asyncio.gather(run(pool, lambda: _wait(gate)), run(pool))
    await asyncio.sleep(0)
    waiting = pool.waiting
    gate.set()
    await asyncio.wait_for(jobs, timeout=10)
    assert waiting == 1


def _wait(gate: threading.Event) -> None:
    assert gate.wait(10)


async def assert_refused(task: asyncio.Task[None]) -> None:
    """Before anything that waits is served."""
    with pytest.raises(ServiceUnavailableException):
        await asyncio.wait_for(task, timeout=10)


class TestTurns:
    async def test_those_of_one_origin_are_served_as_they_came(self, busy: BusyPool) -> None:
        await busy.add("a1", "a2", "a3")

        assert await busy.release() == ["a1", "a2", "a3"]

    async def test_a_newcomer_waits_for_one_job_of_an_origin_that_asks_without_pause(self, busy: BusyPool) -> None:
        await busy.add("a1", "a2", "a3", "a4")
        await busy.add("b1")

        assert await busy.release() == ["a1", "b1", "a2", "a3", "a4"]

    async def test_they_go_round_the_origins(self, busy: BusyPool) -> None:
        await busy.add("a1", "a2", "a3", "b1", "b2", "c1")

        assert await busy.release() == ["a1", "b1", "c1", "a2", "b2", "a3"]

    async def test_they_go_round_the_kinds_of_one_origin(self, busy: BusyPool) -> None:
        await busy.add("a-log-in-1", "a-log-in-2")
        await busy.add("a-sign-up", kind=SIGN_UP)
        await busy.add("a-change", kind=ACCOUNT_CHANGE)

        assert await busy.release() == ["a-log-in-1", "a-sign-up", "a-change", "a-log-in-2"]


class TestFullQueue:
    async def test_a_newcomer_of_the_origin_that_fills_it_is_refused_at_once(self, busy: BusyPool) -> None:
        await busy.add(*"aaaaaaaa")

        [refused] = await busy.add("a")

        await assert_refused(refused)
        assert busy.pool.waiting == 8

    @pytest.mark.parametrize("kind", HashKind)
    async def test_that_it_is_full_in_one_kind_refuses_no_other(self, busy: BusyPool, kind: HashKind) -> None:
        *_, refused = await busy.add(*"aaaaaaaaa", kind=kind)
        await assert_refused(refused)

        for other in set(HashKind) - {kind}:
            await busy.add(*"aaaaaaaa", kind=other)

        assert busy.pool.waiting == 24

    async def test_another_origin_takes_the_place_of_the_last_of_the_fullest(self, busy: BusyPool) -> None:
        *_, last = await busy.add("b1", "b2", "a1", "a2", "a3", "a4", "a5", "a6")

        [newcomer] = await busy.add("c1")

        await assert_refused(last)
        assert await busy.release() == ["b1", "a1", "c1", "b2", "a2", "a3", "a4", "a5"]
        assert newcomer.exception() is None

    async def test_nobody_loses_a_place_to_an_origin_that_would_then_wait_with_as_many(self, busy: BusyPool) -> None:
        await busy.add(*"abcdefgh")

        [refused] = await busy.add("i")

        await assert_refused(refused)
        assert await busy.release() == list("abcdefgh")

    async def test_who_would_be_refused_can_be_told_beforehand(self, busy: BusyPool) -> None:
        await busy.add(*"bbaaaaaa")

        with pytest.raises(ServiceUnavailableException):
            busy.pool.require_room(LOG_IN, "a")
        busy.pool.require_room(LOG_IN, "b")
        busy.pool.require_room(SIGN_UP, "a")

        assert busy.pool.waiting == 8

    async def test_there_is_room_again_when_some_have_been_served(self, busy: BusyPool) -> None:
        await busy.add(*"aaaaaaaa")
        await busy.release()

        await run(busy.pool, origin="a")


class TestGoneCallers:
    async def test_a_job_whose_caller_has_gone_is_dropped(self) -> None:
        pool, has_run = HashPool(threads=1, queue_size=4), threading.Event()

        async def gone() -> bool:
            return True

        with pytest.raises(ServiceUnavailableException):
            await pool.run(has_run.set, kind=LOG_IN, origin="ana", is_disconnected=gone)

        assert not has_run.is_set()
        await run(pool)

    async def test_a_cancelled_job_gives_its_place_back(self, busy: BusyPool) -> None:
        _, cancelled, _ = await busy.add("a1", "a2", "a3")

        cancelled.cancel()
        await asyncio.wait([cancelled])

        assert busy.pool.waiting == 2
        assert await busy.release() == ["a1", "a3"]

    async def test_a_job_that_is_cancelled_as_its_turn_comes_hands_the_turn_on(self, busy: BusyPool) -> None:
        cancelled, _ = await busy.add("a1", "b1")

        busy.gate.set()
        while busy.pool.waiting == 2:  # until the turn is given, of which the job has not heard
            await asyncio.sleep(0)
        cancelled.cancel()

        assert await busy.release() == ["b1"]

    async def test_a_turn_that_comes_to_a_job_that_is_being_cancelled_is_handed_on(self, busy: BusyPool) -> None:
        first, second, _ = await busy.add("a1", "b1", "c1")
        first.cancel()  # nobody has run since: the job is still in line
        second.cancel()

        assert await busy.release() == ["c1"]

    async def test_a_job_that_is_cancelled_as_it_loses_its_place_takes_nothing_along(self, busy: BusyPool) -> None:
        *_, last = await busy.add(*"aaaaaaaa")
        newcomer = asyncio.create_task(run(busy.pool, lambda: busy.served.append("b"), origin="b"))
        asyncio.get_running_loop().call_soon(last.cancel)
        await asyncio.sleep(0)
        busy.tasks.append(newcomer)

        assert await busy.release() == list("abaaaaaa")
        assert last.cancelled()

    async def test_a_job_that_is_cancelled_while_it_is_hashed_gives_its_turn_back(self, busy: BusyPool) -> None:
        busy.tasks[0].cancel()
        await asyncio.wait([busy.tasks[0]])

        await busy.add("a1")

        assert await busy.release() == ["a1"]


class TestThreads:
    async def test_the_event_loop_runs_while_they_hash(self) -> None:
        pool, release = HashPool(threads=2, queue_size=4), threading.Event()

        asyncio.get_running_loop().call_soon(release.set)

        await asyncio.gather(*(run(pool, lambda: _wait(release)) for _ in range(2)))

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities per thread")
    async def test_they_step_behind_the_event_loop(self) -> None:
        pool, niceness = HashPool(threads=1, queue_size=4), list[int]()

        await run(pool, lambda: niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

        assert niceness == [NICENESS + os.getpriority(os.PRIO_PROCESS, os.getpid())]
