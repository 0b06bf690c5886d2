"""An address gets only so many emails of a kind in an hour, and none is lost for it."""

import asyncio
import re
from datetime import timedelta

from src.db.base import utc_now
from src.db.unit_of_work import open_unit_of_work
from src.email import EmailKind
from src.services.purge import purge
from tests.support.factories import make_user
from tests.support.outbox import OutboxHarness, make_outbox
from tests.support.service import make_settings
from tests.support.steps import create_account, post_sign_up, request_reset, resend, reset, sign_up


async def ask_for_resets(outbox: OutboxHarness, count: int) -> None:
    for _ in range(count):
        assert (await request_reset(outbox.service)).status_code == 202
        await outbox.dispatch()


async def test_over_the_limit_an_email_waits_for_its_hour_and_further_requests_join_it(
    outbox: OutboxHarness,
) -> None:
    await create_account(outbox.links)
    await ask_for_resets(outbox, 5)
    assert len(outbox.mailbox.messages) == 5

    await ask_for_resets(outbox, 20)

    assert len(outbox.mailbox.messages) == 5
    [waiting] = await outbox.list_queued()
    oldest = min(email.created_at for email in await outbox.list_all())
    assert waiting.due_at == oldest + timedelta(hours=1)

    await outbox.change(due_at=utc_now())
    await outbox.dispatch()
    assert len(outbox.mailbox.messages) == 6
    assert (await reset(outbox.service, outbox.mailbox.token())).status_code == 204


async def test_after_the_hour_the_next_request_is_answered_at_once(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)
    await ask_for_resets(outbox, 5)
    await outbox.change(created_at=utc_now() - timedelta(hours=1, seconds=1))

    await ask_for_resets(outbox, 1)

    assert len(outbox.mailbox.messages) == 6


async def test_the_purge_does_not_lift_the_limit(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)
    await ask_for_resets(outbox, 5)

    await purge(outbox.database, make_settings())
    await ask_for_resets(outbox, 1)

    assert len(outbox.mailbox.messages) == 5


async def test_each_address_and_each_kind_has_a_limit_of_its_own(outbox: OutboxHarness) -> None:
    for email in ("ana@example.com", "bob@example.com"):
        await create_account(outbox.links, email)
    await ask_for_resets(outbox, 8)
    outbox.mailbox.messages.clear()

    await request_reset(outbox.service, "bob@example.com")
    await sign_up(outbox.service)
    await outbox.dispatch()

    assert {(message.to, message.subject) for message in outbox.mailbox.messages} == {
        ("bob@example.com", "Reset your password"),
        ("ana@example.com", "You already have an account"),
    }


async def test_thirty_sign_ups_of_one_address_at_once_send_no_more_than_the_limit(outbox: OutboxHarness) -> None:
    await asyncio.gather(*(post_sign_up(outbox.service) for _ in range(30)))
    await outbox.drain()

    assert len(outbox.mailbox.messages) == 5


async def test_notices_are_exempt_so_that_nobody_can_silence_them(outbox: OutboxHarness) -> None:
    async with open_unit_of_work(outbox.database) as uow:
        await uow.begin()
        user = await uow.users.add(make_user())
        limited = make_outbox(uow, limit_per_hour=2)
        for number in range(10):
            await limited.queue(EmailKind.PASSWORD_CHANGED, to=user.email, user_id=user.id, where=f"place-{number}")
        await uow.commit()

    await outbox.drain()

    places = {match for message in outbox.mailbox.messages for match in re.findall(r"place-\d", message.text)}
    assert places == {f"place-{number}" for number in range(10)}


async def test_a_resend_joins_an_email_of_the_same_sign_up_that_waits_already(outbox: OutboxHarness) -> None:
    ids = [(await sign_up(outbox.service))["user_id"] for _ in range(2)]

    for _ in range(3):
        await resend(outbox.service)

    assert sorted(str(email.user_id) for email in await outbox.list_queued()) == sorted(ids)
