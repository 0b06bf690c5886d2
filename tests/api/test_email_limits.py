"""Whoever has too many emails sent to an address is refused for a while, whether or not it has an account."""

from collections.abc import Awaitable, Callable

import pytest
from httpx import Response

from src.core.limits import Rate
from src.db import AsyncDatabaseManager
from tests.support.databases import count_users
from tests.support.hashing import BusyPool
from tests.support.service import MailingService, Service, StartMailingService, reached_from
from tests.support.steps import (
    PASSWORD,
    LoggedIn,
    activate,
    create_account,
    create_admin,
    log_in,
    post_log_in,
    post_sign_up,
    refusal,
    request_move,
    request_reset,
    resend,
)

ELSEWHERE = "203.0.113.7"
TOO_MANY: tuple[int, str, list[str]] = (429, "TOO_MANY_REQUESTS", [])

Ask = Callable[[Service, str], Awaitable[Response]]
ANONYMOUS = pytest.mark.parametrize("ask", [post_sign_up, resend, request_reset])


async def invite(service: Service, who: LoggedIn, email: str) -> Response:
    return await service.client.post("/api/users", json={"email": email}, headers=who.bearer)


@ANONYMOUS
async def test_an_address_gets_so_many_emails_from_one_origin(
    start_mailing_service: StartMailingService, ask: Ask
) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address_and_origin=Rate.parse("3/1h"))
    await create_account(service, "known@example.com")
    async with reached_from(service, ELSEWHERE) as elsewhere:
        for email in ("known@example.com", "nobody@example.com"):
            responses = [await ask(elsewhere, email) for _ in range(4)]

            assert [each.is_success for each in responses] == [True] * 3 + [False]
            assert refusal(responses[-1]) == TOO_MANY
            assert (await ask(service, email)).is_success


@ANONYMOUS
async def test_an_address_gets_so_many_emails_from_all_origins(
    start_mailing_service: StartMailingService, ask: Ask
) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address=Rate.parse("3/1h"))
    responses = []
    for number in range(4):
        async with reached_from(service, f"203.0.113.{number}") as somewhere:
            responses.append(await ask(somewhere, "ana@example.com"))

    assert [each.is_success for each in responses] == [True] * 3 + [False]


async def test_kinds_of_email_are_counted_apart(start_mailing_service: StartMailingService) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address_and_origin=Rate.parse("1/1h"))

    responses = [await ask(service, "ana@example.com") for ask in (post_sign_up, resend, request_reset)]

    assert [each.is_success for each in responses] == [True] * 3


async def test_a_sign_up_above_the_limit_leaves_no_row(
    start_mailing_service: StartMailingService, database: AsyncDatabaseManager
) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address_and_origin=Rate.parse("2/1h"))

    for _ in range(5):
        await post_sign_up(service)

    assert await count_users(database) == 2
    assert len(service.mailbox.messages) == 2


async def test_moving_accounts_to_an_address_is_limited(start_mailing_service: StartMailingService) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address_and_origin=Rate.parse("2/1h"))
    await create_account(service)
    who = await log_in(service)

    responses = [await request_move(service, who, "victim@example.com") for _ in range(3)]

    assert [each.status_code for each in responses] == [202, 202, 429]


async def test_administrators_are_limited_too(start_mailing_service: StartMailingService) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address_and_origin=Rate.parse("2/1h"))
    admin = await create_admin(service)
    user_id = await create_account(service)
    path = f"/api/users/{user_id}/password-reset"

    resets = [await service.client.post(path, headers=admin.bearer) for _ in range(3)]
    invitations = [await invite(service, admin, "new@example.com") for _ in range(3)]

    assert [each.status_code for each in resets] == [202, 202, 429]
    assert [each.status_code for each in invitations] == [201, 201, 429]


async def test_a_flood_of_sign_ups_keeps_the_owner_of_the_address_out_of_nothing(
    start_mailing_service: StartMailingService,
) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address=Rate.parse("6/1h"))
    for number in range(6):
        async with reached_from(service, f"203.0.113.{number}") as stranger:
            await post_sign_up(stranger, password=f"a-strangers-guess-{number}")

    assert refusal(await post_sign_up(service)) == TOO_MANY  # but each email that came brings a link
    assert len(service.mailbox.messages) == 6
    response = await activate(service, service.mailbox.token(0), password=PASSWORD)
    assert response.status_code == 200
    assert (await post_log_in(service)).status_code == 200


async def test_a_few_sign_ups_by_strangers_do_not_keep_the_owner_from_a_link(mailing_service: MailingService) -> None:
    for number in range(6):
        async with reached_from(mailing_service, f"203.0.113.{number}") as stranger:
            await post_sign_up(stranger, password=f"a-strangers-guess-{number}")

    await post_sign_up(mailing_service)

    assert len(mailing_service.mailbox.messages) == 7
    assert (await activate(mailing_service, mailing_service.mailbox.token(), password=PASSWORD)).status_code == 200
    assert (await post_log_in(mailing_service)).status_code == 200


async def test_sign_ups_that_send_no_email_take_nothing_from_an_address(
    start_mailing_service: StartMailingService,
) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address=Rate.parse("2/1h"))

    weak = [await post_sign_up(service, password="short") for _ in range(3)]
    service.hash_pool, pool = BusyPool(threads=1, queue_size=2), service.hash_pool
    busy = [await post_sign_up(service) for _ in range(3)]
    service.hash_pool = pool

    assert [each.status_code for each in weak + busy] == [422] * 3 + [503] * 3
    assert (await post_sign_up(service)).status_code == 201


async def test_moves_that_send_no_email_take_nothing_from_an_address(
    start_mailing_service: StartMailingService,
) -> None:
    service = await start_mailing_service(rate_limit_emails_per_address=Rate.parse("2/1h"))
    await create_account(service)
    who = await log_in(service)

    wrong = [await request_move(service, who, current="a-wrong-password") for _ in range(3)]

    assert [each.status_code for each in wrong] == [403] * 3
    assert (await request_move(service, who)).status_code == 202
