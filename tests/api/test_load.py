"""More requests at once than are let in, and clients that leave before their answer."""

import asyncio

import pytest
from starlette.types import Message

from src.core.exceptions import ServiceUnavailableException
from src.db import AsyncDatabaseManager
from src.db.unit_of_work import UnitOfWork
from tests.support.hashing import count_hashes, hold, start_waiting
from tests.support.service import Service, StartService
from tests.support.steps import create_account, log_in, me, post_log_in

PATHS = ["/.well-known/jwks.json", "/health/ready", "/unknown/health/live"]


async def test_requests_beyond_the_limit_are_refused_until_one_has_ended(start_service: StartService) -> None:
    service = await start_service(server_max_requests=1)
    pool, gate = count_hashes(service, threads=1), asyncio.get_running_loop().create_future()
    holding = await hold(pool, gate, jobs=1)
    logging_in = await start_waiting(pool, post_log_in(service))

    refused = [await service.client.get(path) for path in PATHS]
    live = await service.client.get("/health/live")
    metrics = await service.client.get("/metrics")  # there are none here, but that is not for the limit to say

    assert {(response.status_code, response.json()["code"]) for response in refused} == {(503, "SERVICE_UNAVAILABLE")}
    assert all(int(response.headers["Retry-After"]) > 0 for response in refused)
    assert (live.status_code, metrics.status_code) == (200, 404)
    gate.set_result(None)
    await asyncio.gather(logging_in, *holding)
    assert (await service.client.get("/.well-known/jwks.json")).status_code == 200


async def has_left() -> bool:
    return True


async def test_a_transaction_that_nobody_waits_for_is_not_begun(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        with pytest.raises(ServiceUnavailableException):
            await UnitOfWork(session, has_left).begin()

        async with database.session() as other, asyncio.timeout(5):  # which the first must not keep waiting
            await UnitOfWork(other).begin()


async def test_what_a_client_asked_for_that_has_left_is_not_done(service: Service) -> None:
    await create_account(service)
    ana = await log_in(service)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        """As uvicorn does for who has left."""

    authorization = ("authorization", ana.bearer["Authorization"])
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/auth/logout",
        "query_string": b"",
        "headers": [tuple(part.encode() for part in authorization)],
    }
    await service.app(scope, receive, send)

    assert (await me(service, ana)).status_code == 200


async def test_a_connection_that_has_closed_before_the_answer_is_no_error(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Message) -> None:  # as uvloop does, when uvicorn writes to a closed connection
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/health/live", "query_string": b""}
    await service.app({**scope, "headers": []}, receive, send)

    assert caplog.records == []
