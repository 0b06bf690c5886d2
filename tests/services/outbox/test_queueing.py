"""An email is queued with what it tells of, and nothing that could be used is ever at rest."""

import asyncio
from collections import Counter

import pytest
from sqlalchemy import select

from src.db import AsyncDatabaseManager
from src.db.models import OutboxStatus, UserModel
from src.db.unit_of_work import open_unit_of_work
from src.email import EmailKind
from src.services import Context, Runtime
from tests.support.databases import count_statements, dump, execute
from tests.support.outbox import OutboxHarness, hidden_outbox, make_outbox
from tests.support.service import Mailbox, make_settings
from tests.support.steps import (
    PASSWORD,
    activate,
    create_account,
    log_in,
    post_sign_up,
    request_move,
    request_reset,
    resend,
    sign_up,
)


async def test_a_sign_up_whose_email_cannot_be_queued_leaves_no_account(outbox: OutboxHarness) -> None:
    async with hidden_outbox(outbox.database):
        response = await post_sign_up(outbox.service)

    assert response.status_code >= 500
    async with outbox.database.session() as session:
        assert (await session.scalars(select(UserModel))).all() == []


async def test_an_email_goes_with_the_transaction_that_queued_it(outbox: OutboxHarness) -> None:
    async with open_unit_of_work(outbox.database) as uow:
        await uow.begin()
        await make_outbox(uow).queue(EmailKind.ACCOUNT_DELETED, to="ana@example.com", user_id=None, where=None)
        await uow.rollback()

    assert not await outbox.dispatch()
    assert outbox.mailbox.messages == []


@pytest.mark.slow
@pytest.mark.parametrize("is_committed", [False, True], ids=["rollback", "commit"])
async def test_the_dispatcher_is_woken_after_a_commit_and_not_after_a_rollback(
    database: AsyncDatabaseManager, *, is_committed: bool
) -> None:
    woken: list[str] = []
    runtime = Runtime.from_settings(make_settings())
    runtime.wake_dispatcher = lambda: woken.append("woken")
    async with open_unit_of_work(database) as uow:
        context = Context.new(runtime, uow, email=Mailbox())
        await uow.begin()
        await context.notify(EmailKind.ACCOUNT_DELETED, to="ana@example.com", user_id=None)
        assert woken == []

        await (context.commit() if is_committed else uow.rollback())

    assert woken == (["woken"] if is_committed else [])


async def test_the_token_is_made_when_the_email_is_sent_and_not_before(outbox: OutboxHarness) -> None:
    await sign_up(outbox.service, name="Ana")

    [email] = await outbox.list_all()
    assert await outbox.count_tokens() == 0
    assert email.content is not None
    assert email.content.keys() == {"when", "where", "name"}

    await outbox.dispatch()

    assert await outbox.count_tokens() == 1
    assert (await activate(outbox.service, outbox.mailbox.token())).status_code == 200


async def test_no_table_ever_holds_a_token_or_a_password(outbox: OutboxHarness) -> None:
    await create_account(outbox.links)
    who = await log_in(outbox.links)
    await sign_up(outbox.service, "bob@example.com")
    await request_reset(outbox.service)
    await request_move(outbox.service, who)
    dumps = [await dump(outbox.database)]

    while await outbox.dispatch():
        dumps.append(await dump(outbox.database))

    tokens = [outbox.mailbox.token(index) for index in range(3)]
    assert len(set(tokens)) == 3
    for secret in (*tokens, PASSWORD, who.access_token, who.refresh_token, "token="):
        assert not any(secret in each for each in dumps)


async def test_a_sent_email_forgets_its_content(outbox: OutboxHarness) -> None:
    await sign_up(outbox.service, name="Ana the Unique")

    await outbox.dispatch()

    [email] = await outbox.list_all()
    assert (email.status, email.content, email.lease_id, email.leased_until) == (OutboxStatus.SENT, None, None, None)


class TestDeadlocks:
    @pytest.mark.slow
    async def test_two_who_ask_for_each_others_address_at_once_do_not_deadlock(self, outbox: OutboxHarness) -> None:
        await create_account(outbox.links)
        await create_account(outbox.links, "bob@example.com")
        ana, bob = await log_in(outbox.links), await log_in(outbox.links, "bob@example.com")

        for _ in range(10):
            responses = await asyncio.gather(
                request_move(outbox.service, ana, "bob@example.com"),
                request_move(outbox.service, bob, "ana@example.com"),
            )
            assert [response.status_code for response in responses] == [202, 202]
            await outbox.dispatch()

    @pytest.mark.slow
    async def test_sign_ups_resends_and_resets_of_an_owned_address_at_once_do_not_deadlock(
        self, outbox: OutboxHarness
    ) -> None:
        await create_account(outbox.links)

        for _ in range(20):
            asked = (ask(outbox.service) for ask in (post_sign_up, resend, request_reset, post_sign_up, resend))
            responses = await asyncio.gather(*asked)
            assert Counter(response.status_code for response in responses) == {201: 2, 202: 3}
            await execute(outbox.database, "DELETE FROM outbox_emails")


class TestAnUnknownAddress:
    async def test_a_reset_for_it_sends_nothing(self, outbox: OutboxHarness) -> None:
        await request_reset(outbox.service, "ghost@example.com")

        await outbox.dispatch()

        assert outbox.mailbox.messages == []
        assert [(email.status, email.content) for email in await outbox.list_all()] == [(OutboxStatus.DROPPED, None)]

    async def test_a_reset_for_it_costs_the_same_statements_however_often_it_is_asked(
        self, outbox: OutboxHarness
    ) -> None:
        await create_account(outbox.links)

        known: list[Counter[str]] = []
        unknown: list[Counter[str]] = []
        for _ in range(2):
            for _ in range(2):  # while the first waits, the second is dropped
                for counts, email in ((known, "ana@example.com"), (unknown, "ghost@example.com")):
                    asking = request_reset(outbox.service, email)
                    counts.append(await count_statements(outbox.service.database, asking))
            await outbox.dispatch()

        assert known == unknown
