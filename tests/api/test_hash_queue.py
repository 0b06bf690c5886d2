"""Passwords wait to be hashed: no kind of work and no origin can crowd out others."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio
from httpx import Response

from src.core.hash_pool import HashKind
from tests.support.hashing import CLIENT_ADDRESS, CountingPool, count_hashes, hold, wait_until
from tests.support.service import Service, reached_from
from tests.support.steps import change_password, create_account, log_in, post_log_in, post_sign_up

ATTACKER = "203.0.113.7"


@dataclass
class Flood:
    """Somebody who guesses passwords until log-ins have no place left to wait, in a pool of one thread."""

    service: Service
    pool: CountingPool
    attacked: Service  # as the attacker reaches it
    gate: asyncio.Future[None]
    guesses: list[asyncio.Task[Response]]

    async def guess(self) -> Response:
        return await post_log_in(self.attacked, password="guess")

    async def release(self) -> None:
        if not self.gate.done():
            self.gate.set_result(None)
        await asyncio.gather(*self.guesses)


@pytest_asyncio.fixture
async def flood(service: Service) -> AsyncIterator[Flood]:
    await create_account(service)
    pool = count_hashes(service, threads=1, queue_size=4)
    gate = asyncio.get_running_loop().create_future()
    holding = await hold(pool, gate, jobs=1)
    async with reached_from(service, ATTACKER) as attacked:
        flood = Flood(service, pool, attacked, gate, [])
        flood.guesses += [asyncio.create_task(flood.guess()) for _ in range(4)]
        await wait_until(lambda: pool.waiting == 4)
        yield flood
        await flood.release()
    await asyncio.gather(*holding)


async def test_one_more_guess_is_a_503_at_once(flood: Flood) -> None:
    response = await flood.guess()

    assert (response.status_code, response.json()["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert int(response.headers["Retry-After"]) > 0


async def test_a_sign_up_is_not_refused_because_log_ins_wait(flood: Flood) -> None:
    signing_up = asyncio.create_task(post_sign_up(flood.service, "bob@example.com"))
    await wait_until(lambda: flood.pool.waiting == 5)

    await flood.release()

    assert (await signing_up).status_code == 201


async def test_a_log_in_from_elsewhere_waits_for_one_guess_alone(flood: Flood) -> None:
    logging_in = asyncio.create_task(post_log_in(flood.service))
    await wait_until(lambda: any(guess.done() for guess in flood.guesses))

    await flood.release()

    assert (await logging_in).status_code == 200
    assert sorted(guess.result().status_code for guess in flood.guesses) == [401, 401, 401, 503]
    attack, log_in = (HashKind.LOG_IN, ATTACKER), (HashKind.LOG_IN, CLIENT_ADDRESS)
    assert flood.pool.served == [log_in, attack, log_in, attack, attack]  # the first is what held the thread


async def test_a_change_of_password_is_not_refused_because_log_ins_wait(service: Service) -> None:
    await create_account(service)
    who = await log_in(service)
    pool, gate = count_hashes(service, threads=1, queue_size=4), asyncio.get_running_loop().create_future()
    holding = await hold(pool, gate, jobs=1 + 4)

    changing = asyncio.create_task(change_password(service, who))
    await wait_until(lambda: pool.waiting == 5)
    gate.set_result(None)

    assert (await changing).status_code == 204
    await asyncio.gather(*holding)
