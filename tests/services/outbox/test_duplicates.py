"""An email that waits already is not queued twice; what needs no sending is stored all the same, and delays nothing."""

import asyncio
import re
from collections import Counter

import pytest

from src.db.base import utc_now
from src.db.models import OutboxStatus
from src.db.unit_of_work import open_unit_of_work
from src.email import EmailKind
from src.services.purge import SETTLED_EMAILS_KEPT, purge
from tests.support.factories import make_user
from tests.support.outbox import OutboxHarness, make_outbox
from tests.support.service import make_settings
from tests.support.steps import create_account, log_in, request_move, request_reset, resend, sign_up


@pytest.mark.slow
async def test_of_many_who_ask_at_once_one_is_sent_and_the_others_are_dropped(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)

    await asyncio.gather(*(request_reset(outbox.service) for _ in range(20)))

    statuses = Counter(email.status for email in await outbox.list_all())
    assert statuses == {OutboxStatus.QUEUED: 1, OutboxStatus.DROPPED: 19}
    await outbox.drain()
    assert len(outbox.mailbox.messages) == 1


@pytest.mark.slow
async def test_of_many_accounts_that_would_move_to_an_owned_address_at_once_its_owner_is_told_once(
    outbox: OutboxHarness,
) -> None:
    await create_account(outbox.links)
    emails = [f"u{number}@example.com" for number in range(6)]
    people = []
    for email in emails:
        await create_account(outbox.links, email)
        people.append(await log_in(outbox.links, email))

    await asyncio.gather(*(request_move(outbox.service, who, "ana@example.com") for who in people))

    statuses = Counter(email.status for email in await outbox.list_all())
    assert statuses == {OutboxStatus.QUEUED: 1, OutboxStatus.DROPPED: 5}


async def test_once_it_is_sent_the_next_is_sent_too(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)

    for _ in range(8):
        await request_reset(outbox.service)
        await outbox.dispatch()

    assert len(outbox.mailbox.messages) == 8


async def test_an_email_of_another_kind_or_to_another_address_is_none_that_waits(outbox: OutboxHarness) -> None:
    for email in ("ana@example.com", "bob@example.com"):
        await create_account(outbox.links, email)
        await request_reset(outbox.service, email)

    await sign_up(outbox.service)
    await outbox.drain()

    assert {(message.to, message.subject) for message in outbox.mailbox.messages} == {
        ("ana@example.com", "Reset your password"),
        ("bob@example.com", "Reset your password"),
        ("ana@example.com", "You already have an account"),
    }


@pytest.mark.slow
async def test_each_of_many_sign_ups_of_one_address_gets_its_link(outbox: OutboxHarness) -> None:
    await asyncio.gather(*(sign_up(outbox.service) for _ in range(10)))

    await outbox.drain()

    assert len(outbox.mailbox.messages) == 10


async def test_notices_are_never_dropped_so_that_nobody_can_silence_them(outbox: OutboxHarness) -> None:
    async with open_unit_of_work(outbox.database) as uow:
        await uow.begin()
        user = await uow.users.add(make_user())
        for number in range(10):
            where = f"place-{number}"
            await make_outbox(uow).queue(EmailKind.PASSWORD_CHANGED, to=user.email, user_id=user.id, where=where)
        await uow.commit()

    await outbox.drain()

    places = {match for message in outbox.mailbox.messages for match in re.findall(r"place-\d", message.text)}
    assert places == {f"place-{number}" for number in range(10)}


async def test_a_resend_joins_an_email_of_the_same_sign_up_that_waits_already(outbox: OutboxHarness) -> None:
    await sign_up(outbox.service, name="one")
    await sign_up(outbox.service, name="two")

    for _ in range(3):
        await resend(outbox.service)

    assert len(await outbox.list_queued()) == 2
    await outbox.dispatch()
    pages = [
        await outbox.service.client.get("/activate", params={"token": outbox.mailbox.token(number)})
        for number in range(2)
    ]
    assert sorted(re.findall("<dt>Name</dt><dd>(.+?)</dd>", "".join(page.text for page in pages))) == ["one", "two"]


async def test_what_is_asked_for_nobody_holds_up_no_email(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)
    for number in range(12):
        await request_reset(outbox.service, f"ghost-{number}@example.com")
    await request_reset(outbox.service)

    await outbox.dispatch()

    assert [message.to for message in outbox.mailbox.messages] == ["ana@example.com"]


async def test_what_was_dropped_is_forgotten_like_what_was_sent(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)
    for email in ("ana@example.com", "ana@example.com", "ghost@example.com"):
        await request_reset(outbox.service, email)
    await outbox.dispatch()

    assert (await purge(outbox.database, make_settings())).mails == 0
    await outbox.change(updated_at=utc_now() - SETTLED_EMAILS_KEPT)

    assert (await purge(outbox.database, make_settings())).mails == 3
