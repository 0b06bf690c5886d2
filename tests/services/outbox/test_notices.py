"""Whoever owns an account is told of what happens to it, and can undo what a thief does."""

import re
from datetime import timedelta

from sqlalchemy import select

from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import OutboxStatus, UserTokenModel
from src.email import EmailKind, Message
from tests.support.databases import rows_about_people
from tests.support.outbox import OutboxHarness
from tests.support.service import MailingService, StartMailingService
from tests.support.steps import (
    NEW_PASSWORD,
    change_password,
    confirm_move,
    create_account,
    create_admin,
    leave,
    log_in,
    me,
    move,
    patch_user,
    post_log_in,
    refresh,
    refusal,
    request_move,
    request_reset,
    reset,
    revert_move,
)


def assert_notice(message: Message, to: str, subject: str) -> None:
    """It tells when, from where, and how to end all sessions."""
    assert (message.to, message.subject) == (to, subject)
    assert re.search(r"When: \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", message.text)
    assert "From: 127.0.0.1\n" in message.text
    assert "sessions" in message.text


async def test_a_changed_password_is_told_to_the_owner(mailing_service: MailingService) -> None:
    await create_account(mailing_service)

    response = await change_password(mailing_service, await log_in(mailing_service))

    assert response.status_code == 204
    assert_notice(mailing_service.mailbox.messages[-1], "ana@example.com", "Your password was changed")


async def test_a_password_set_by_a_reset_is_told_too(mailing_service: MailingService) -> None:
    await create_account(mailing_service)
    await request_reset(mailing_service)

    await reset(mailing_service, mailing_service.mailbox.token())

    assert_notice(mailing_service.mailbox.messages[-1], "ana@example.com", "Your password was changed")


async def test_a_replayed_refresh_token_is_told_once(start_mailing_service: StartMailingService) -> None:
    service = await start_mailing_service(auth_refresh_grace_seconds=0)
    await create_account(service)
    who = await log_in(service)
    await refresh(service, who.refresh_token)
    service.mailbox.messages.clear()

    for _ in range(3):
        assert (await refresh(service, who.refresh_token)).status_code == 401

    [message] = service.mailbox.messages
    assert_notice(message, "ana@example.com", "A session was ended for your safety")


async def test_a_changed_address_is_told_to_the_old_one_with_a_link_that_undoes_it(
    mailing_service: MailingService,
) -> None:
    service = mailing_service
    await create_account(service)
    thief, other = await log_in(service), await log_in(service)
    undo = await move(service, thief, "thief@example.com")
    message = service.mailbox.messages[-1]
    assert_notice(message, "ana@example.com", "Your e-mail address was changed")
    assert "New address: thief@example.com\n" in message.text

    response = await revert_move(service, undo)

    assert response.status_code == 204
    assert (await post_log_in(service)).status_code == 200
    assert (await post_log_in(service, "thief@example.com")).status_code == 401
    for each in (thief, other):
        assert (await me(service, each)).status_code == 401
        assert (await refresh(service, each.refresh_token)).status_code == 401


async def test_the_link_that_undoes_it_lives_for_seven_days(
    mailing_service: MailingService, database: AsyncDatabaseManager
) -> None:
    await create_account(mailing_service)

    await move(mailing_service, await log_in(mailing_service), "new@example.com")

    async with database.session() as session:
        [token] = (await session.scalars(select(UserTokenModel))).all()
    assert timedelta(days=6, hours=23, minutes=59) < token.expires_at - utc_now() <= timedelta(days=7)


async def test_it_survives_that_the_thief_changes_the_password_and_moves_on(mailing_service: MailingService) -> None:
    service = mailing_service
    user_id = await create_account(service)
    thief = await log_in(service)
    undo = await move(service, thief, "thief@example.com")
    assert (await change_password(service, thief)).status_code == 204
    await move(service, thief, "hideout@example.com", NEW_PASSWORD)

    assert (await revert_move(service, undo)).status_code == 204

    assert (await me(service, thief)).status_code == 401
    await request_reset(service)
    assert service.mailbox.messages[-1].to == "ana@example.com"
    assert (await reset(service, service.mailbox.token(), "the-owners-new-password")).status_code == 204
    assert (await post_log_in(service, password="the-owners-new-password")).json()["user_id"] == user_id


async def test_a_deleted_account_is_told_and_then_nothing_of_the_person_is_left(outbox: OutboxHarness) -> None:
    await create_account(outbox.links, name="Ana the Unique")
    who = await log_in(outbox.links)
    await request_reset(outbox.service)
    await request_move(outbox.service, who)
    assert (await leave(outbox.service, who)).status_code == 204
    [email] = await outbox.list_all()
    assert (email.kind, email.user_id) == (EmailKind.ACCOUNT_DELETED, None)

    await outbox.dispatch()

    [message] = outbox.mailbox.messages
    assert_notice(message, "ana@example.com", "Your account was deleted")
    assert await rows_about_people(outbox.database) == []


async def test_a_thief_who_deletes_the_account_cannot_silence_the_notice_to_its_owner(
    outbox: OutboxHarness,
) -> None:
    await create_account(outbox.links)
    thief = await log_in(outbox.links)
    await request_move(outbox.service, thief, "thief@example.com")
    await outbox.dispatch()
    await confirm_move(outbox.service, outbox.mailbox.token())

    assert (await leave(outbox.service, thief)).status_code == 204
    await outbox.dispatch()

    assert "ana@example.com" in {message.to for message in outbox.mailbox.messages}


async def test_a_notice_that_could_not_be_sent_goes_with_the_account(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)
    who = await log_in(outbox.links)
    await request_move(outbox.service, who)
    await outbox.dispatch()
    await confirm_move(outbox.service, outbox.mailbox.token())
    await outbox.change(status=OutboxStatus.DEAD)

    assert (await leave(outbox.service, who)).status_code == 204
    await outbox.dispatch()

    assert await rows_about_people(outbox.database) == []


async def test_an_account_that_is_disabled_is_told_of_no_link_that_undoes_its_change_of_address(
    outbox: OutboxHarness,
) -> None:
    admin = await create_admin(outbox.links)
    user_id = await create_account(outbox.links)
    await request_move(outbox.service, await log_in(outbox.links))
    await outbox.dispatch()
    await confirm_move(outbox.service, outbox.mailbox.token())

    for is_active in (False, True):
        assert (await patch_user(outbox.service, admin, user_id, is_active=is_active)).status_code == 200

    assert await outbox.list_queued() == []


async def test_disabling_an_account_ends_the_link_that_undoes_its_change_of_address(
    mailing_service: MailingService,
) -> None:
    service = mailing_service
    admin = await create_admin(service)
    user_id = await create_account(service)
    undo = await move(service, await log_in(service), "new@example.com")

    for is_active in (False, True):
        assert (await patch_user(service, admin, user_id, is_active=is_active)).status_code == 200

    assert refusal(await revert_move(service, undo)) == (400, "INVALID_TOKEN", [])
