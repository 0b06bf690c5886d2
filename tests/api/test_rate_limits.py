"""Who asks or guesses too often is refused for a while. How rates are counted is in tests/repositories, and who asks
for too many emails in test_email_limits.py."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from httpx import Response
from sqlalchemy import func, select, update
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from src.core.hash_pool import HashPool
from src.core.limits import Rate
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import EventKind, SessionModel, rate_limits
from src.services.clients import ClientSecret
from tests.support.databases import count_statements, execute, read_tables
from tests.support.hashing import BusyPool, count_hashes, hold, start_waiting
from tests.support.service import Service, StartService, connect, reached_from
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    UNKNOWN_ID,
    change_password,
    create_account,
    create_client,
    log_in,
    post_client_credentials,
    post_log_in,
    refusal,
    request_reset,
    reset,
    token_of,
)

Refusal = tuple[int, str, list[str]]

TOO_MANY: Refusal = (429, "TOO_MANY_REQUESTS", [])
WRONG: Refusal = (401, "INVALID_CREDENTIALS", [])
ELSEWHERE = "203.0.113.7"


async def guess(service: Service, email: str = "ana@example.com", **headers: str) -> Response:
    return await post_log_in(service, email, "a-wrong-password", **headers)


async def guess_often(service: Service, times: int = 10, email: str = "ana@example.com") -> list[Response]:
    return [await guess(service, email) for _ in range(times)]


async def count_keys(database: AsyncDatabaseManager) -> int:
    async with database.session() as session:
        return (await session.scalars(select(func.count()).select_from(rate_limits))).one()


async def log_in_events(database: AsyncDatabaseManager) -> list[str | None]:
    """The reasons of those that failed."""
    [events] = (await read_tables(database, lambda table: table.name == "audit_events")).values()
    return [event.reason for event in events if event.kind == EventKind.LOG_IN and event.reason]


async def test_the_eleventh_wrong_password_is_refused(service: Service) -> None:
    await create_account(service)

    responses = await guess_often(service, 11)

    assert [refusal(each) for each in responses] == [WRONG] * 10 + [TOO_MANY]


async def test_a_refusal_says_exactly_when_to_come_back(service: Service) -> None:
    await guess_often(service)

    headers = (await guess(service)).headers

    assert 85 <= int(headers["Retry-After"]) <= 90  # a tenth of 15 minutes
    assert headers["RateLimit-Limit"] == "10"
    assert headers["RateLimit-Remaining"] == "0"
    assert headers["RateLimit-Reset"] == headers["Retry-After"]
    assert headers["RateLimit-Policy"] == "10;w=900"


async def test_known_and_unknown_addresses_are_refused_alike(service: Service) -> None:
    await create_account(service)

    known, unknown = await guess_often(service, 12), await guess_often(service, 12, "nobody@example.com")

    assert [(each.status_code, each.text) for each in known] == [(each.status_code, each.text) for each in unknown]


async def test_two_workers_count_together(start_service: StartService) -> None:
    workers = [await start_service(), await start_service()]

    responses = [await guess(workers[number % 2]) for number in range(11)]

    assert [refusal(each) for each in responses] == [WRONG] * 10 + [TOO_MANY]


async def test_of_many_guesses_at_once_ten_are_tried(start_service: StartService) -> None:
    workers = [await start_service(), await start_service()]

    responses = await asyncio.gather(*(guess(workers[number % 2]) for number in range(40)))

    statuses = [each.status_code for each in responses]
    assert (statuses.count(401), statuses.count(429)) == (10, 30)


async def test_a_site_cannot_make_its_visitors_guess(start_service: StartService) -> None:
    app = "https://app.example"
    service = await start_service(cors_allowed_origins=app)
    await create_account(service)

    async def post_form(origin: str, password: str) -> Response:
        form = {"grant_type": "password", "username": "ana@example.com", "password": password}
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        return await service.client.post("/auth/token", data=form, headers=headers)

    responses = [await post_form("https://evil.example", "a-wrong-password") for _ in range(11)]

    assert [refusal(each) for each in responses] == [(403, "FOREIGN_ORIGIN", [])] * 11
    assert (await post_form(app, PASSWORD)).status_code == 200


async def test_the_right_password_is_refused_too_where_so_many_were_wrong(service: Service) -> None:
    await create_account(service)
    await guess_often(service)

    assert refusal(await post_log_in(service)) == TOO_MANY


async def test_elsewhere_the_right_password_works_meanwhile(service: Service) -> None:
    await create_account(service)
    await guess_often(service, 11)

    async with reached_from(service, ELSEWHERE) as elsewhere:
        response = await post_log_in(elsewhere)

    assert response.status_code == 200


async def test_log_ins_that_succeed_are_not_counted(service: Service) -> None:
    await create_account(service)

    responses = [await post_log_in(service) for _ in range(25)]

    assert {each.status_code for each in responses} == {200}


async def test_many_right_passwords_at_once_block_nobody_afterwards(service: Service) -> None:
    await create_account(service)
    pool, gate = count_hashes(service, threads=1), asyncio.get_running_loop().create_future()
    holding = await hold(pool, gate, jobs=1)
    log_ins = [await start_waiting(pool, post_log_in(service)) for _ in range(10)]
    assert refusal(await post_log_in(service)) == TOO_MANY

    gate.set_result(None)
    await asyncio.gather(*holding, *log_ins)

    assert {each.result().status_code for each in log_ins} == {200}
    assert (await post_log_in(service)).status_code == 200


@pytest.mark.parametrize("is_logged_in", [False, True])
async def test_an_attempt_that_was_not_tried_is_not_counted(service: Service, *, is_logged_in: bool) -> None:
    await create_account(service)
    who = await log_in(service)

    async def attempt() -> Response:
        return await (change_password(service, who) if is_logged_in else post_log_in(service))

    service.hash_pool = BusyPool(threads=1, queue_size=2)
    busy = [await attempt() for _ in range(11)]
    service.hash_pool = HashPool(threads=1, queue_size=2)

    assert {each.status_code for each in busy} == {503}
    assert (await attempt()).is_success


async def test_an_ipv6_network_is_one_origin(service: Service) -> None:
    async def guess_from(address: str) -> Response:
        async with reached_from(service, address) as somewhere:
            return await guess(somewhere)

    responses = [await guess_from(f"2001:db8:1:2::{number:x}") for number in range(1, 12)]

    assert [refusal(each) for each in responses] == [WRONG] * 10 + [TOO_MANY]
    assert refusal(await guess_from("2001:db8:1:3::1")) == WRONG


@pytest.mark.parametrize("forged", ["198.51.100.{}", "127.0.0.1, 198.51.100.{}"])
async def test_a_forged_forwarding_header_changes_nothing(service: Service, forged: str) -> None:
    behind_uvicorn: Any = ProxyHeadersMiddleware(service.app, trusted_hosts="10.0.0.1")  # type: ignore[arg-type]  # both are ASGI
    async with connect(behind_uvicorn, client=(ELSEWHERE, 50_000)) as client:
        stranger = Service(service.app, client, service.database)
        responses = [await guess(stranger, **{"X-Forwarded-For": forged.format(number)}) for number in range(11)]

    assert [refusal(each) for each in responses] == [WRONG] * 10 + [TOO_MANY]


# --- many origins, one account ---

FEW = {"rate_limit_failures_per_account": Rate.parse("20/1h")}


async def guess_from_everywhere(service: Service, origins: int) -> list[Response]:
    async def guess_there(number: int) -> Response:
        async with reached_from(service, f"10.0.{number // 250}.{number % 250 + 1}") as somewhere:
            return await guess(somewhere)

    return [
        response
        for start in range(0, origins, 50)
        for response in await asyncio.gather(
            *(guess_there(number) for number in range(start, min(start + 50, origins)))
        )
    ]


@pytest.mark.slow
async def test_many_origins_together_are_refused(start_service: StartService) -> None:
    service = await start_service(**FEW)
    await create_account(service)

    statuses = [each.status_code for each in await guess_from_everywhere(service, 30)]

    assert (statuses.count(401), statuses.count(429)) == (20, 10)
    async with reached_from(service, ELSEWHERE) as elsewhere:
        assert refusal(await post_log_in(elsewhere)) == TOO_MANY


async def test_the_owner_gets_in_from_where_they_have_a_session(start_service: StartService) -> None:
    service = await start_service(**FEW)
    await create_account(service)
    async with reached_from(service, ELSEWHERE) as home:
        await log_in(home)
        await guess_from_everywhere(service, 30)

        assert (await post_log_in(home)).status_code == 200


async def test_a_guesser_gains_nothing_at_an_origin_of_the_owner(start_service: StartService) -> None:
    service = await start_service(**FEW)
    await create_account(service)
    await log_in(service)
    await guess_from_everywhere(service, 30)

    responses = await guess_often(service, 11)

    assert [refusal(each) for each in responses] == [WRONG] * 10 + [TOO_MANY]


async def test_a_session_of_long_ago_tells_nothing_of_an_origin(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service = await start_service(**FEW)
    await create_account(service)
    async with reached_from(service, ELSEWHERE) as home:
        await log_in(home)
        await execute(database, update(SessionModel).values(last_used_at=utc_now() - timedelta(days=15)))
        await guess_from_everywhere(service, 30)

        assert refusal(await post_log_in(home)) == TOO_MANY


async def test_who_is_logged_in_does_not_wait_for_what_strangers_guess(start_service: StartService) -> None:
    service = await start_service(**FEW)
    await create_account(service)
    who = await log_in(service)
    await guess_from_everywhere(service, 30)

    async with reached_from(service, ELSEWHERE) as on_the_way:  # the session began at another origin
        response = await change_password(on_the_way, who)

    assert response.status_code == 204


async def test_an_owner_without_a_session_gets_in_by_a_reset(start_service: StartService) -> None:
    service = await start_service(**FEW, auth_return_token_in_response=True)
    await create_account(service)
    await guess_from_everywhere(service, 30)
    async with reached_from(service, ELSEWHERE) as home:
        assert refusal(await post_log_in(home)) == TOO_MANY

        url = (await request_reset(home)).json()["reset_url"]
        assert (await reset(home, token_of(url))).status_code == 204

        assert (await post_log_in(home, password=NEW_PASSWORD)).status_code == 200


async def test_whoever_resets_the_password_may_log_in_at_once(start_service: StartService) -> None:
    service = await start_service(auth_return_token_in_response=True)
    await create_account(service)
    await guess_often(service, 11)

    url = (await request_reset(service)).json()["reset_url"]
    await reset(service, token_of(url))

    assert (await post_log_in(service, password=NEW_PASSWORD)).status_code == 200


@pytest.mark.slow
async def test_a_thousand_origins_lock_nobody_out(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account(service)
    await log_in(service)

    statuses = [each.status_code for each in await guess_from_everywhere(service, 1000)]

    assert (statuses.count(401), statuses.count(429)) == (100, 900)
    assert (await post_log_in(service)).status_code == 200


# --- what it costs ---


async def test_whoever_goes_on_costs_neither_a_statement_nor_a_row(
    service: Service, database: AsyncDatabaseManager
) -> None:
    await guess_often(service, 11)
    keys = await count_keys(database)

    assert not await count_statements(service.database, guess_often(service, 20))
    assert await count_keys(database) == keys == 3


async def test_whoever_goes_on_with_other_addresses_costs_no_more(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service = await start_service(rate_limit_requests_per_origin=Rate.parse("2/1h"))
    for number in range(3):
        await guess(service, f"{number}@example.com")
    keys = await count_keys(database)

    assert not await count_statements(service.database, guess(service, "another@example.com"))
    assert await count_keys(database) == keys


async def test_the_trail_tells_once_in_a_period_that_a_key_was_refused(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    for worker in (await start_service(), await start_service()):
        await guess_often(worker, 20)

    assert await log_in_events(database) == ["INVALID_CREDENTIALS"] * 10 + ["TOO_MANY_REQUESTS"]


async def test_without_limits_nothing_is_counted(start_service: StartService, database: AsyncDatabaseManager) -> None:
    service = await start_service(rate_limit_enabled=False)

    responses = await guess_often(service, 12)

    assert [refusal(each) for each in responses] == [WRONG] * 12
    assert await count_keys(database) == 0


async def test_a_rate_that_is_changed_counts_anew(start_service: StartService) -> None:
    await guess_often(await start_service(), 11)

    service = await start_service(rate_limit_failures_per_account_and_origin=Rate.parse("20/1m"))

    assert refusal(await guess(service)) == WRONG


# --- other guesses ---


async def test_wrong_current_passwords_count_as_wrong_log_ins(service: Service) -> None:
    await create_account(service)
    who = await log_in(service)

    responses = [await change_password(service, who, current="a-wrong-password") for _ in range(10)]

    assert [refusal(each) for each in responses] == [(403, "WRONG_PASSWORD", [])] * 10
    assert refusal(await change_password(service, who)) == TOO_MANY
    assert refusal(await post_log_in(service)) == TOO_MANY


async def test_right_current_passwords_are_not_counted(service: Service) -> None:
    await create_account(service)
    who = await log_in(service)

    responses = [await change_password(service, who, new=PASSWORD) for _ in range(12)]

    assert {each.status_code for each in responses} == {204}


async def test_wrong_secrets_of_a_client_are_limited(service: Service) -> None:
    client = await create_client(service, "users:read")

    responses = [await post_client_credentials(service, client, client_secret="wrong") for _ in range(11)]

    assert [each.status_code for each in responses] == [401] * 10 + [429]
    async with reached_from(service, ELSEWHERE) as elsewhere:
        assert (await post_client_credentials(elsewhere, client)).status_code == 200


async def test_the_trail_tells_that_a_client_was_refused_but_of_none_that_is_not_there(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service = await start_service(rate_limit_failures_per_account_and_origin=Rate.parse("1/1h"))
    client = await create_client(service, "users:read")

    for each in (client, ClientSecret(UUID(UNKNOWN_ID), "wrong")):
        responses = [await post_client_credentials(service, each, client_secret="wrong") for _ in range(3)]
        assert [response.status_code for response in responses] == [401, 429, 429]

    [events] = (await read_tables(database, lambda table: table.name == "audit_events")).values()
    refused = [(event.reason, event.client_id) for event in events if event.kind == EventKind.CLIENT_TOKEN]
    assert refused == [("INVALID_CLIENT", client.client_id), ("TOO_MANY_REQUESTS", client.client_id)]


async def test_a_client_may_ask_for_many_tokens(service: Service) -> None:
    client = await create_client(service, "users:read")

    responses = [await post_client_credentials(service, client) for _ in range(15)]

    assert {each.status_code for each in responses} == {200}


async def test_a_right_secret_with_a_wrong_scope_is_no_wrong_guess(service: Service) -> None:
    client = await create_client(service, "users:read")

    wrong = [await post_client_credentials(service, client, scope="users:write") for _ in range(11)]

    assert [refusal(each)[:2] for each in wrong] == [(400, "INVALID_SCOPE")] * 11
    assert (await post_client_credentials(service, client)).status_code == 200


async def test_strangers_are_limited_whatever_they_ask(start_service: StartService) -> None:
    service = await start_service(rate_limit_requests_per_origin=Rate.parse("5/1h"))

    responses = [await guess(service, f"{number}@example.com") for number in range(6)]

    assert [each.status_code for each in responses] == [401] * 5 + [429]


# --- links ---


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/auth/activate", {"token": "t"}),
        ("/auth/invitation/accept", {"token": "t", "password": PASSWORD}),
        ("/auth/password-reset/confirm", {"token": "t", "new_password": PASSWORD}),
        ("/auth/email-change/confirm", {"token": "t"}),
        ("/auth/email-change/revert", {"token": "t"}),
    ],
)
async def test_guesses_at_links_are_limited_by_origin(
    start_service: StartService, path: str, body: dict[str, str]
) -> None:
    service = await start_service(rate_limit_requests_per_origin=Rate.parse("2/1h"))

    responses = [await service.client.post(path, json=body) for _ in range(3)]

    assert [each.status_code for each in responses] == [400, 400, 429]


async def test_a_page_tells_people_to_wait(start_service: StartService) -> None:
    service = await start_service(rate_limit_requests_per_origin=Rate.parse("1/1h"))
    await service.client.post("/activate", data={"token": "t"})

    response = await service.client.post("/activate", data={"token": "t"})

    assert response.status_code == 429
    assert response.headers["Retry-After"] == "3600"
    assert "text/html" in response.headers["Content-Type"]
    assert "Wait a moment" in response.text
