"""A link is made when its email is sent, and only while the account and the address still are what they were."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import delete, update

from src.db.base import utc_now
from src.db.models import SessionModel, UserModel
from src.services.purge import purge
from tests.support.databases import execute
from tests.support.factories import DAY, age_users
from tests.support.outbox import OutboxHarness, claim, interrupted, make_dispatcher
from tests.support.service import make_settings
from tests.support.steps import (
    LoggedIn,
    change_password,
    confirm_move,
    create_account,
    create_admin,
    leave,
    log_in,
    log_out,
    request_move,
    request_reset,
    sign_up,
)

Step = Callable[[OutboxHarness, LoggedIn], Awaitable[None]]


async def queue_activation(outbox: OutboxHarness, _who: LoggedIn) -> None:
    await sign_up(outbox.service, "pending@example.com")


async def queue_reset(outbox: OutboxHarness, _who: LoggedIn) -> None:
    await request_reset(outbox.service)


async def queue_move(outbox: OutboxHarness, who: LoggedIn) -> None:
    await request_move(outbox.service, who)


async def activate_all(outbox: OutboxHarness, _who: LoggedIn) -> None:
    await execute(outbox.database, update(UserModel).values(is_active=True, activated_at=utc_now()))


async def let_sign_ups_end(outbox: OutboxHarness, _who: LoggedIn) -> None:
    await age_users(outbox.database, hours=49)


async def disable_all(outbox: OutboxHarness, _who: LoggedIn) -> None:
    await execute(outbox.database, update(UserModel).values(is_active=False, activated_at=utc_now()))


async def move_all(outbox: OutboxHarness, _who: LoggedIn) -> None:
    await execute(outbox.database, "UPDATE users SET email = 'elsewhere-' || email")


async def delete_all(outbox: OutboxHarness, _who: LoggedIn) -> None:
    await execute(outbox.database, delete(UserModel))


async def change_the_password(outbox: OutboxHarness, who: LoggedIn) -> None:
    assert (await change_password(outbox.service, who)).status_code == 204


async def leave_for_good(outbox: OutboxHarness, who: LoggedIn) -> None:
    assert (await leave(outbox.service, who)).status_code == 204


@pytest.mark.slow
@pytest.mark.parametrize("before", [1, 2], ids=["before-it-is-claimed", "after-it-is-claimed"])
@pytest.mark.parametrize(
    ("queue", "meanwhile"),
    [
        (queue_activation, activate_all),
        (queue_activation, let_sign_ups_end),
        (queue_activation, move_all),
        (queue_activation, delete_all),
        (queue_reset, disable_all),
        (queue_reset, move_all),
        (queue_reset, delete_all),
        (queue_reset, change_the_password),
        (queue_reset, leave_for_good),
        (queue_move, disable_all),
        (queue_move, delete_all),
        (queue_move, change_the_password),
        (queue_move, leave_for_good),
    ],
)
async def test_a_link_that_has_become_wrong_is_not_made(
    outbox: OutboxHarness, queue: Step, meanwhile: Step, before: int
) -> None:
    await create_account(outbox.links)
    who = await log_in(outbox.links)
    await queue(outbox, who)

    async with interrupted(outbox.database_url, before=before, happens=lambda: meanwhile(outbox, who)) as database:
        dispatcher = make_dispatcher(database, outbox.mailbox)
        while await dispatcher.dispatch_due():
            pass

    assert [message.subject for message in outbox.mailbox.messages if "token=" in message.text] == []
    assert await outbox.count_tokens() == 0
    assert await outbox.list_queued() == []


async def test_an_owner_who_has_moved_meanwhile_is_not_written_to_at_the_old_address(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)
    await sign_up(outbox.service)
    accounts = UserModel.activated_at.is_not(None)
    await execute(outbox.database, update(UserModel).where(accounts).values(email="moved@example.com"))

    await outbox.dispatch()

    assert outbox.mailbox.messages == []


async def test_a_link_outlives_the_session_that_asked_for_it(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)
    who = await log_in(outbox.links)
    await request_move(outbox.service, who)
    await log_out(outbox.service, who)
    await execute(outbox.database, update(SessionModel).values(last_used_at=utc_now() - 31 * DAY))
    assert (await purge(outbox.database, make_settings())).sessions == 1

    await outbox.dispatch()

    assert (await confirm_move(outbox.service, outbox.mailbox.token())).status_code == 204


async def test_an_invitation_that_is_sent_again_brings_a_new_link_although_the_older_email_is_on_its_way(
    outbox: OutboxHarness,
) -> None:
    admin = await create_admin(outbox.links)
    body = {"email": "ana@example.com"}
    await outbox.service.client.post("/api/users", json=body, headers=admin.bearer)
    [on_its_way] = await claim(outbox.database)

    await outbox.service.client.post("/api/users", json=body, headers=admin.bearer)

    [email] = await outbox.list_queued()
    assert email.id != on_its_way.id
