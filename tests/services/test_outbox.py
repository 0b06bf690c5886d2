"""The outbox loses no mail, sends none twice, and keeps nothing that could be used."""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import aiosmtplib
import pytest
from httpx import Response
from sqlalchemy import delete, event, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from src.db import AsyncDatabaseManager, BaseModel
from src.db.base import utc_now
from src.db.database import begin_writing
from src.db.models import OutboxEmailModel, OutboxStatus, UserModel, UserTokenModel
from src.db.repositories import OutboxRepository
from src.email import EmailUtils, Message, MessageKind
from src.services.outbox import Dispatcher, Outbox, back_off
from src.services.purge import purge
from tests.support.databases import rows_about_people
from tests.support.service import Mailbox, MailingService, Service, StartMailingService, make_settings
from tests.support.smtp_server import MailServer
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    LoggedIn,
    activate,
    create_account,
    log_in,
    me,
    post_log_in,
    post_sign_up,
    refresh,
    sign_up,
)

LEASE = timedelta(seconds=60)


@pytest.fixture
async def queueing(start_mailing_service: StartMailingService) -> Service:
    """A service whose mail waits until a test dispatches it."""
    service = await start_mailing_service()
    service.hold_emails()
    return service


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
async def dispatcher(database_url: str, mailbox: Mailbox) -> AsyncGenerator[Dispatcher, None]:
    dispatcher = Dispatcher(AsyncDatabaseManager(database_url), mailbox, make_settings())
    yield dispatcher
    await dispatcher.database.disconnect()


async def queue_notices(database: AsyncDatabaseManager, count: int) -> None:
    """Mails to as many addresses about one account."""
    async with database.session() as session:
        user = UserModel(email="ana@example.com", hashed_password="<bcrypt-hash>")
        session.add(user)
        await session.flush()
        session.add_all(
            OutboxEmailModel(
                kind=MessageKind.PASSWORD_CHANGED,
                to_email=f"u{number}@example.com",
                user_id=user.id,
                content={"when": "now", "where": None},
            )
            for number in range(count)
        )
        await session.commit()


async def list_mails(database: AsyncDatabaseManager) -> list[OutboxEmailModel]:
    async with database.session() as session:
        return list(await OutboxRepository(session).list(limit=1000))


async def list_waiting(database: AsyncDatabaseManager) -> list[OutboxEmailModel]:
    return [mail for mail in await list_mails(database) if mail.status == OutboxStatus.QUEUED]


async def change_mails(database: AsyncDatabaseManager, **values: Any) -> None:
    async with database.session() as session:
        await session.execute(update(OutboxEmailModel).values(values))
        await session.commit()


async def change_users(database: AsyncDatabaseManager, **values: Any) -> None:
    async with database.session() as session:
        await session.execute(update(UserModel).values(values))
        await session.commit()


async def claim(database: AsyncDatabaseManager, limit: int = 10) -> list[OutboxEmailModel]:
    async with database.session() as session:
        await begin_writing(session)
        mails = await OutboxRepository(session).claim(limit=limit, lease=LEASE)
        await session.commit()
    return list(mails)


async def in_transaction(database: AsyncDatabaseManager, work: Callable[[OutboxRepository], Awaitable[Any]]) -> Any:
    async with database.session() as session:
        await begin_writing(session)
        result = await work(OutboxRepository(session))
        await session.commit()
    return result


async def dump(database: AsyncDatabaseManager) -> str:
    async with database.session() as session:
        rows = [(await session.execute(table.select())).all() for table in BaseModel.metadata.sorted_tables]
    return repr(rows)


async def count_tokens(database: AsyncDatabaseManager) -> int:
    async with database.session() as session:
        return len((await session.scalars(select(UserTokenModel.id))).all())


async def request_reset(service: Service, email: str = "ana@example.com") -> Response:
    return await service.client.post("/auth/password-reset/request", json={"email": email})


async def reset(service: Service, token: str, new: str = NEW_PASSWORD) -> Response:
    return await service.client.post("/auth/password-reset/confirm", json={"token": token, "new_password": new})


async def resend(service: Service, email: str = "ana@example.com") -> Response:
    return await service.client.post("/auth/activation/resend", json={"email": email})


async def change_password(service: Service, who: LoggedIn) -> Response:
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    response = await service.client.post("/auth/password-change", json=body, headers=who.bearer)
    assert response.status_code == 204, response.text
    return response


async def request_move(
    service: Service, who: LoggedIn, new_email: str = "new@example.com", password: str = PASSWORD
) -> Response:
    body = {"new_email": new_email, "current_password": password}
    return await service.client.post("/auth/email-change/request", json=body, headers=who.bearer)


async def confirm_move(service: Service, token: str) -> Response:
    response = await service.client.post("/auth/email-change/confirm", json={"token": token})
    assert response.status_code == 204, response.text
    return response


async def revert_move(service: Service, token: str) -> Response:
    return await service.client.post("/auth/email-change/revert", json={"token": token})


async def leave(service: Service, who: LoggedIn) -> Response:
    body = {"current_password": PASSWORD}
    response = await service.client.post("/auth/delete-account", json=body, headers=who.bearer)
    assert response.status_code == 204, response.text
    return response


class InterruptedDatabase(AsyncDatabaseManager):
    """The real database, where something else happens just before one of the transactions.

    A mail takes three: it is claimed, its message is made, and what became of it is written down.
    """

    def __init__(self, url: str, *, before: int, happens: Callable[[], Awaitable[object]]) -> None:
        super().__init__(url)
        self.transactions = 0
        self._before = before
        self._happens = happens

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession, None]:
        self.transactions += 1
        if self.transactions == self._before:
            await self._happens()
        async with super().session() as session:
            yield session


@asynccontextmanager
async def hidden_outbox(database: AsyncDatabaseManager) -> AsyncGenerator[None, None]:
    """Meanwhile whoever needs the outbox fails."""
    await execute(database, "ALTER TABLE outbox_emails RENAME TO hidden")
    try:
        yield
    finally:
        await execute(database, "ALTER TABLE hidden RENAME TO outbox_emails")


async def execute(database: AsyncDatabaseManager, statement: str) -> None:
    async with database.session() as session:
        await session.execute(text(statement))
        await session.commit()


class TestQueueing:
    async def test_a_sign_up_whose_mail_cannot_be_queued_leaves_no_account(
        self, queueing: Service, database: AsyncDatabaseManager
    ) -> None:
        async with hidden_outbox(database):
            response = await post_sign_up(queueing)

        assert response.status_code >= 500
        async with database.session() as session:
            assert (await session.scalars(select(UserModel))).all() == []

    async def test_a_mail_goes_with_the_transaction_that_queued_it(
        self, database: AsyncDatabaseManager, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        async with database.session() as session:
            outbox = Outbox(session, limit_per_hour=5, wake=lambda: None)
            await outbox.queue(MessageKind.ACCOUNT_DELETED, to="ana@example.com", user_id=None, where=None)
            await session.rollback()

        assert not await dispatcher.dispatch_due()
        assert mailbox.messages == []

    async def test_the_dispatcher_is_woken_after_a_commit_and_not_after_a_rollback(
        self, database: AsyncDatabaseManager
    ) -> None:
        woken: list[str] = []
        async with database.session() as session:
            outbox = Outbox(session, limit_per_hour=5, wake=lambda: woken.append("woken"))
            await outbox.queue(MessageKind.ACCOUNT_DELETED, to="ana@example.com", user_id=None, where=None)
            await session.rollback()
        assert woken == []

        async with database.session() as session:
            outbox = Outbox(session, limit_per_hour=5, wake=lambda: woken.append("woken"))
            await outbox.queue(MessageKind.ACCOUNT_DELETED, to="ana@example.com", user_id=None, where=None)
            assert woken == []
            await session.commit()

        assert woken == ["woken"]

    async def test_the_token_is_made_when_the_mail_is_sent_and_not_before(
        self, queueing: Service, database: AsyncDatabaseManager, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        await sign_up(queueing, name="Ana")

        [mail] = await list_mails(database)
        assert await count_tokens(database) == 0
        assert mail.content is not None
        assert mail.content.keys() == {"when", "where", "name"}

        await dispatcher.dispatch_due()

        assert await count_tokens(database) == 1
        assert (await activate(queueing, mailbox.token())).status_code == 200

    async def test_no_table_ever_holds_a_token_or_a_password(
        self,
        service: Service,
        queueing: Service,
        database: AsyncDatabaseManager,
        dispatcher: Dispatcher,
        mailbox: Mailbox,
    ) -> None:
        await create_account(service)
        who = await log_in(service)
        await sign_up(queueing, "bob@example.com")
        await request_reset(queueing)
        await request_move(queueing, who)
        dumps = [await dump(database)]

        while await dispatcher.dispatch_due():
            dumps.append(await dump(database))

        tokens = [mailbox.token(index) for index in range(3)]
        assert len(set(tokens)) == 3
        for secret in (*tokens, PASSWORD, who.access_token, who.refresh_token, "token="):
            assert not any(secret in each for each in dumps)

    async def test_a_sent_mail_forgets_its_content(
        self, queueing: Service, database: AsyncDatabaseManager, dispatcher: Dispatcher
    ) -> None:
        await sign_up(queueing, name="Ana the Unique")

        await dispatcher.dispatch_due()

        [mail] = await list_mails(database)
        assert (mail.status, mail.content, mail.lease_id, mail.leased_until) == (OutboxStatus.SENT, None, None, None)


class TestFailure:
    async def test_a_mail_that_fails_waits_for_a_retry_and_tells_the_kind_of_the_error_alone(
        self,
        queueing: Service,
        database: AsyncDatabaseManager,
        dispatcher: Dispatcher,
        mailbox: Mailbox,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        await sign_up(queueing)
        mailbox.failure = aiosmtplib.SMTPDataError(451, "no room for the mail to ana@example.com")
        before = utc_now()

        with caplog.at_level(logging.INFO):
            await dispatcher.dispatch_due()

        [mail] = await list_mails(database)
        assert (mail.status, mail.attempts, mail.lease_id) == (OutboxStatus.QUEUED, 1, None)
        assert mail.last_error == "SMTPDataError 451"
        assert timedelta(seconds=2) < mail.due_at - before < timedelta(seconds=15)
        assert not await dispatcher.dispatch_due()
        assert "SMTPDataError 451" in caplog.text
        for private in ("ana@example.com", "no room", "token="):
            assert private not in caplog.text

    async def test_the_retry_sends_it_with_a_link_that_works(
        self, queueing: Service, database: AsyncDatabaseManager, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        await sign_up(queueing, name="Ana")
        mailbox.failure = ConnectionRefusedError("by 127.0.0.1")
        await dispatcher.dispatch_due()
        mailbox.failure = None
        await change_mails(database, due_at=utc_now())

        await dispatcher.dispatch_due()

        [mail] = await list_mails(database)
        assert (mail.status, mail.attempts, mail.last_error) == (OutboxStatus.SENT, 2, None)
        assert (await activate(queueing, mailbox.token())).status_code == 200

    async def test_after_the_last_attempt_it_is_a_dead_letter_that_can_be_queued_again(
        self, queueing: Service, database: AsyncDatabaseManager, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
    ) -> None:
        dispatcher = Dispatcher(database, mailbox, make_settings(outbox_max_attempts=2))
        await sign_up(queueing)
        mailbox.failure = aiosmtplib.SMTPRecipientRefused(550, "no such user", "ana@example.com")
        for _ in range(2):
            await change_mails(database, due_at=utc_now())
            await dispatcher.dispatch_due()

        [mail] = await list_mails(database)
        assert (mail.status, mail.attempts, mail.last_error) == (OutboxStatus.DEAD, 2, "SMTPRecipientRefused 550")
        assert not await dispatcher.dispatch_due()
        assert [record.levelname for record in caplog.records if record.levelno >= logging.ERROR] == ["ERROR"]

        mailbox.failure = None
        assert await in_transaction(database, lambda mails: mails.retry(mail.id)) == 1
        await dispatcher.dispatch_due()

        assert (await activate(queueing, mailbox.token())).status_code == 200

    @pytest.mark.parametrize(
        ("attempts", "shortest", "longest"),
        [(1, 2.5, 7.5), (2, 5, 15), (3, 10, 30), (11, 1800, 5400), (10_000, 1800, 5400)],
    )
    def test_the_wait_doubles_from_seconds_to_an_hour_and_is_never_in_step(
        self, attempts: int, shortest: float, longest: float
    ) -> None:
        waits = [back_off(attempts).total_seconds() for _ in range(200)]

        assert shortest <= min(waits) < max(waits) <= longest
        assert max(waits) - min(waits) > (longest - shortest) / 2

    async def test_one_mail_that_fails_does_not_hold_up_the_others(self, database: AsyncDatabaseManager) -> None:
        class Picky(Mailbox):
            async def send(self, message: Message) -> None:
                if message.to == "u3@example.com":
                    raise aiosmtplib.SMTPRecipientRefused(550, "no such user", message.to)
                await super().send(message)

        await queue_notices(database, 10)
        picky = Picky()

        await Dispatcher(database, picky, make_settings()).dispatch_due()

        assert len(picky.messages) == 9
        assert [mail.to_email for mail in await list_waiting(database)] == ["u3@example.com"]

    async def test_a_mail_whose_fate_cannot_be_written_down_does_not_end_the_others(
        self, database: AsyncDatabaseManager
    ) -> None:
        both_are_minted, gate = asyncio.Event(), asyncio.Event()

        class Slow(Mailbox):
            async def send(self, message: Message) -> None:
                if message.to == "u1@example.com":
                    both_are_minted.set()
                    await gate.wait()
                await both_are_minted.wait()
                await super().send(message)

        await queue_notices(database, 2)
        slow = Slow()
        dispatching: asyncio.Task[bool]
        writes: list[object] = []

        async def make_it_fail() -> None:
            writes.append(None)
            await execute(database, "ALTER TABLE outbox_emails RENAME TO hidden")

        interrupted = InterruptedDatabase(
            str(database.url.render_as_string(hide_password=False)), before=4, happens=make_it_fail
        )
        dispatching = asyncio.create_task(Dispatcher(interrupted, slow, make_settings()).dispatch_due())
        try:
            while interrupted.transactions < 4 or not writes:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # for the failure, which nothing else announces
        finally:
            await execute(database, "ALTER TABLE hidden RENAME TO outbox_emails")
            gate.set()
            await asyncio.wait([dispatching])
            await interrupted.disconnect()

        assert [message.to for message in slow.messages] == ["u0@example.com", "u1@example.com"]
        statuses = {mail.to_email: mail.status for mail in await list_mails(database)}
        assert statuses == {"u0@example.com": OutboxStatus.QUEUED, "u1@example.com": OutboxStatus.SENT}


class TestLease:
    async def test_a_claimed_mail_is_not_claimed_again_until_its_lease_ends(
        self, database: AsyncDatabaseManager
    ) -> None:
        await queue_notices(database, 1)
        [first] = await claim(database)

        assert await claim(database) == []

        await change_mails(database, leased_until=utc_now() - timedelta(seconds=1))
        [second] = await claim(database)
        assert second.id == first.id
        assert second.lease_id != first.lease_id
        assert second.attempts == 2

    async def test_claims_at_once_share_the_mails(self, database: AsyncDatabaseManager) -> None:
        await queue_notices(database, 40)

        claims = await asyncio.gather(*(claim(database, 10) for _ in range(8)))

        ids = [mail.id for each in claims for mail in each]
        assert len(ids) == len(set(ids))
        assert sum(len(each) for each in [*claims, *[await claim(database, 40)]]) == 40

    async def test_a_mail_that_is_not_due_yet_is_not_claimed(self, database: AsyncDatabaseManager) -> None:
        await queue_notices(database, 1)
        await change_mails(database, due_at=utc_now() + timedelta(seconds=30))

        assert await claim(database) == []

    @pytest.mark.parametrize("late", ["mark_sent", "mark_failed", "release", "drop"])
    async def test_who_has_lost_the_lease_changes_nothing(self, database: AsyncDatabaseManager, late: str) -> None:
        await queue_notices(database, 1)
        [mine] = await claim(database)
        await change_mails(database, leased_until=utc_now() - timedelta(seconds=1))
        [theirs] = await claim(database)

        options = {"error": "late", "retry_at": None} if late == "mark_failed" else {}
        await in_transaction(database, lambda mails: getattr(mails, late)(mine, **options))

        [mail] = await list_mails(database)
        for column in ("status", "attempts", "lease_id", "leased_until", "due_at", "last_error", "content"):
            assert getattr(mail, column) == getattr(theirs, column)

    async def test_a_mail_that_another_has_claimed_meanwhile_is_not_sent(
        self, queueing: Service, database: AsyncDatabaseManager, database_url: str, mailbox: Mailbox
    ) -> None:
        await sign_up(queueing)

        async def lose_the_lease() -> None:
            await change_mails(database, leased_until=utc_now() - timedelta(seconds=1))
            assert len(await claim(database)) == 1

        late = InterruptedDatabase(database_url, before=2, happens=lose_the_lease)
        await Dispatcher(late, mailbox, make_settings()).dispatch_due()
        await late.disconnect()

        assert mailbox.messages == []
        assert await count_tokens(database) == 0


class TestStopping:
    async def test_a_mail_that_is_being_sent_gets_through(self, database: AsyncDatabaseManager) -> None:
        started, gate = asyncio.Event(), asyncio.Event()

        class Slow(Mailbox):
            async def send(self, message: Message) -> None:
                started.set()
                await gate.wait()
                await super().send(message)

        slow = Slow()
        await queue_notices(database, 1)
        dispatcher = Dispatcher(database, slow, make_settings())
        running = asyncio.create_task(dispatcher.run())
        await started.wait()

        finishing = asyncio.create_task(dispatcher.finish(running))
        asyncio.get_running_loop().call_later(0.2, gate.set)
        await finishing

        assert len(slow.messages) == 1
        assert [mail.status for mail in await list_mails(database)] == [OutboxStatus.SENT]

    async def test_mails_that_do_not_get_through_are_given_back_at_once(self, database: AsyncDatabaseManager) -> None:
        started = asyncio.Event()

        class Hanging(Mailbox):
            async def send(self, message: Message) -> None:
                started.set()
                await asyncio.Event().wait()
                await super().send(message)

        await queue_notices(database, 3)
        dispatcher = Dispatcher(database, Hanging(), make_settings())
        running = asyncio.create_task(dispatcher.run())
        await started.wait()

        await dispatcher.finish(running)

        states = {(mail.status, mail.attempts, mail.lease_id) for mail in await list_mails(database)}
        assert states == {(OutboxStatus.QUEUED, 0, None)}
        assert len(await claim(database)) == 3

    async def test_a_stop_between_sending_and_marking_marks_it_all_the_same(
        self, database: AsyncDatabaseManager, database_url: str, mailbox: Mailbox
    ) -> None:
        await queue_notices(database, 1)

        async def stop() -> None:
            assert len(mailbox.messages) == 1
            dispatching.cancel()

        stopped = InterruptedDatabase(database_url, before=3, happens=stop)
        dispatching = asyncio.create_task(Dispatcher(stopped, mailbox, make_settings()).dispatch_due())
        with pytest.raises(asyncio.CancelledError):
            await dispatching
        await stopped.disconnect()

        assert [mail.status for mail in await list_mails(database)] == [OutboxStatus.SENT]


async def queue_activation(service: Service, _who: LoggedIn) -> None:
    await sign_up(service, "pending@example.com")


async def queue_reset(service: Service, _who: LoggedIn) -> None:
    await request_reset(service)


async def queue_move(service: Service, who: LoggedIn) -> None:
    await request_move(service, who)


async def activate_all(_service: Service, database: AsyncDatabaseManager, _who: LoggedIn) -> None:
    await change_users(database, is_active=True, activated_at=utc_now())


async def disable_all(_service: Service, database: AsyncDatabaseManager, _who: LoggedIn) -> None:
    await change_users(database, is_active=False, activated_at=utc_now())


async def move_all(_service: Service, database: AsyncDatabaseManager, _who: LoggedIn) -> None:
    async with database.session() as session:
        await session.execute(text("UPDATE users SET email = 'elsewhere-' || email"))
        await session.commit()


async def delete_all(_service: Service, database: AsyncDatabaseManager, _who: LoggedIn) -> None:
    async with database.session() as session:
        await session.execute(delete(UserModel))
        await session.commit()


async def change_the_password(service: Service, _database: AsyncDatabaseManager, who: LoggedIn) -> None:
    await change_password(service, who)


async def leave_for_good(service: Service, _database: AsyncDatabaseManager, who: LoggedIn) -> None:
    await leave(service, who)


Queue = Callable[[Service, LoggedIn], Awaitable[None]]
Meanwhile = Callable[[Service, AsyncDatabaseManager, LoggedIn], Awaitable[None]]


class TestLinksAreMadeOnlyWhileTheyHold:
    @pytest.mark.parametrize("before", [1, 2], ids=["before-it-is-claimed", "after-it-is-claimed"])
    @pytest.mark.parametrize(
        ("queue", "meanwhile"),
        [
            (queue_activation, activate_all),
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
        self,
        service: Service,
        queueing: Service,
        database: AsyncDatabaseManager,
        database_url: str,
        mailbox: Mailbox,
        queue: Queue,
        meanwhile: Meanwhile,
        before: int,
    ) -> None:
        await create_account(service)
        who = await log_in(service)
        await queue(queueing, who)
        interrupted = InterruptedDatabase(
            database_url, before=before, happens=lambda: meanwhile(queueing, database, who)
        )
        dispatcher = Dispatcher(interrupted, mailbox, make_settings())

        while await dispatcher.dispatch_due():
            pass
        await interrupted.disconnect()

        assert [message.subject for message in mailbox.messages if "token=" in message.text] == []
        assert await count_tokens(database) == 0
        assert await list_waiting(database) == []

    async def test_an_owner_who_has_moved_meanwhile_is_not_written_to_at_the_old_address(
        self,
        service: Service,
        queueing: Service,
        database: AsyncDatabaseManager,
        dispatcher: Dispatcher,
        mailbox: Mailbox,
    ) -> None:
        await create_account(service)
        await sign_up(queueing)
        await change_users_with_an_account(database, email="moved@example.com")

        await dispatcher.dispatch_due()

        assert mailbox.messages == []


async def change_users_with_an_account(database: AsyncDatabaseManager, **values: Any) -> None:
    async with database.session() as session:
        await session.execute(update(UserModel).where(UserModel.activated_at.is_not(None)).values(values))
        await session.commit()


class TestLimit:
    async def test_over_the_limit_a_mail_waits_until_the_hour_is_over_and_further_requests_join_it(
        self,
        service: Service,
        queueing: Service,
        database: AsyncDatabaseManager,
        dispatcher: Dispatcher,
        mailbox: Mailbox,
    ) -> None:
        await create_account(service)
        for _ in range(5):
            await request_reset(queueing)
            await dispatcher.dispatch_due()
        assert len(mailbox.messages) == 5

        for _ in range(20):
            assert (await request_reset(queueing)).status_code == 202
            await dispatcher.dispatch_due()

        assert len(mailbox.messages) == 5
        [waiting] = await list_waiting(database)
        oldest = min(mail.created_at for mail in await list_mails(database))
        assert waiting.due_at == oldest + timedelta(hours=1)

        await change_mails(database, due_at=utc_now())
        await dispatcher.dispatch_due()
        assert len(mailbox.messages) == 6
        assert (await reset(queueing, mailbox.token())).status_code == 204

    async def test_after_the_hour_the_next_request_is_answered_at_once(
        self,
        service: Service,
        queueing: Service,
        database: AsyncDatabaseManager,
        dispatcher: Dispatcher,
        mailbox: Mailbox,
    ) -> None:
        await create_account(service)
        for _ in range(5):
            await request_reset(queueing)
            await dispatcher.dispatch_due()
        await change_mails(database, created_at=utc_now() - timedelta(hours=1, seconds=1))

        await request_reset(queueing)
        await dispatcher.dispatch_due()

        assert len(mailbox.messages) == 6

    async def test_the_purge_does_not_lift_the_limit(
        self,
        service: Service,
        queueing: Service,
        database: AsyncDatabaseManager,
        dispatcher: Dispatcher,
        mailbox: Mailbox,
    ) -> None:
        await create_account(service)
        for _ in range(5):
            await request_reset(queueing)
            await dispatcher.dispatch_due()

        await purge(database, make_settings())
        await request_reset(queueing)
        await dispatcher.dispatch_due()

        assert len(mailbox.messages) == 5

    async def test_each_address_and_each_kind_has_a_limit_of_its_own(
        self, service: Service, queueing: Service, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        for email in ("ana@example.com", "bob@example.com"):
            await create_account(service, email)
        for _ in range(8):
            await request_reset(queueing)
            await dispatcher.dispatch_due()
        mailbox.messages.clear()

        await request_reset(queueing, "bob@example.com")
        await sign_up(queueing)
        await dispatcher.dispatch_due()

        assert {(message.to, message.subject) for message in mailbox.messages} == {
            ("bob@example.com", "Reset your password"),
            ("ana@example.com", "You already have an account"),
        }

    async def test_thirty_sign_ups_of_one_address_at_once_send_no_more_than_the_limit(
        self, queueing: Service, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        await asyncio.gather(*(post_sign_up(queueing) for _ in range(30)))
        while await dispatcher.dispatch_due():
            pass

        assert len(mailbox.messages) == 5

    async def test_notices_are_exempt_so_that_nobody_can_silence_them(
        self, database: AsyncDatabaseManager, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        async with database.session() as session:
            user = UserModel(email="ana@example.com", hashed_password="<bcrypt-hash>")
            session.add(user)
            await session.flush()
            outbox = Outbox(session, limit_per_hour=2, wake=lambda: None)
            for number in range(10):
                await outbox.queue(
                    MessageKind.PASSWORD_CHANGED, to=user.email, user_id=user.id, where=f"place-{number}"
                )
            await session.commit()

        while await dispatcher.dispatch_due():
            pass

        places = {match for message in mailbox.messages for match in re.findall(r"place-\d", message.text)}
        assert places == {f"place-{number}" for number in range(10)}

    async def test_a_resend_joins_a_mail_of_the_same_sign_up_that_waits_already(
        self, queueing: Service, database: AsyncDatabaseManager, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        await sign_up(queueing, name="one")
        await sign_up(queueing, name="two")

        for _ in range(3):
            await resend(queueing)

        assert len(await list_mails(database)) == 2
        await dispatcher.dispatch_due()
        assert sorted(re.findall("Name: (.+)", "".join(message.text for message in mailbox.messages))) == ["one", "two"]


class TestLocks:
    async def test_two_who_ask_for_each_others_address_at_once_do_not_wait_in_a_circle(
        self, service: Service, queueing: Service, dispatcher: Dispatcher
    ) -> None:
        await create_account(service)
        await create_account(service, "bob@example.com")
        ana, bob = await log_in(service), await log_in(service, "bob@example.com")

        for _ in range(10):
            responses = await asyncio.gather(
                request_move(queueing, ana, "bob@example.com"), request_move(queueing, bob, "ana@example.com")
            )
            assert [response.status_code for response in responses] == [202, 202]
            await dispatcher.dispatch_due()

    async def test_sign_ups_resends_and_resets_of_an_owned_address_at_once_do_not_wait_in_a_circle(
        self, service: Service, queueing: Service, database: AsyncDatabaseManager
    ) -> None:
        await create_account(service)

        for _ in range(20):
            asked = (ask(queueing) for ask in (post_sign_up, resend, request_reset, post_sign_up, resend))
            responses = await asyncio.gather(*asked)
            assert Counter(response.status_code for response in responses) == {201: 2, 202: 3}
            await execute(database, "DELETE FROM outbox_emails")


class TestAnUnknownAddress:
    async def test_a_reset_for_it_sends_nothing(
        self, queueing: Service, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        await request_reset(queueing, "ghost@example.com")

        await dispatcher.dispatch_due()

        assert mailbox.messages == []

    async def test_a_reset_for_it_costs_the_same_statements_however_often_it_is_asked(
        self, service: Service, queueing: Service, dispatcher: Dispatcher
    ) -> None:
        await create_account(service)

        known: list[Counter[str]] = []
        unknown: list[Counter[str]] = []
        for _ in range(8):  # over the limit too
            for _ in range(2):  # the second joins the first
                known.append(await count_statements(queueing, "ana@example.com"))
                unknown.append(await count_statements(queueing, "ghost@example.com"))
            await dispatcher.dispatch_due()

        assert known == unknown

    async def test_its_row_is_forgotten_by_the_purge(
        self, queueing: Service, database: AsyncDatabaseManager, dispatcher: Dispatcher
    ) -> None:
        await request_reset(queueing, "ghost@example.com")
        await dispatcher.dispatch_due()
        await change_mails(database, updated_at=utc_now() - timedelta(hours=1, seconds=1))

        await purge(database, make_settings())

        assert await list_mails(database) == []


async def count_statements(service: Service, email: str) -> Counter[str]:
    """What the request of a reset asks of the database, by verb."""
    verbs: Counter[str] = Counter()

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        verbs[statement.split()[0]] += 1

    engine = service.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", count)
    await request_reset(service, email)
    event.remove(engine, "before_cursor_execute", count)
    return verbs


def assert_notice(message: Message, to: str, subject: str) -> None:
    """It tells when, from where, and how to end all sessions."""
    assert (message.to, message.subject) == (to, subject)
    assert re.search(r"When: \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", message.text)
    assert "From: 127.0.0.1\n" in message.text
    assert "sessions" in message.text


class TestNotices:
    async def test_a_changed_password_is_told_to_the_owner(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)

        await change_password(mailing_service, await log_in(mailing_service))

        assert_notice(mailing_service.mailbox.messages[-1], "ana@example.com", "Your password was changed")

    async def test_a_password_set_by_a_reset_is_told_too(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        await request_reset(mailing_service)

        await reset(mailing_service, mailing_service.mailbox.token())

        assert_notice(mailing_service.mailbox.messages[-1], "ana@example.com", "Your password was changed")

    async def test_a_replayed_refresh_token_is_told_once(self, start_mailing_service: StartMailingService) -> None:
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
        self, mailing_service: MailingService
    ) -> None:
        service = mailing_service
        await create_account(service)
        thief, other = await log_in(service), await log_in(service)
        await request_move(service, thief, "thief@example.com")
        await confirm_move(service, service.mailbox.token())
        message = service.mailbox.messages[-1]
        assert_notice(message, "ana@example.com", "Your e-mail address was changed")
        assert "New address: thief@example.com\n" in message.text

        response = await revert_move(service, service.mailbox.token())

        assert response.status_code == 204
        assert (await post_log_in(service)).status_code == 200
        assert (await post_log_in(service, "thief@example.com")).status_code == 401
        for each in (thief, other):
            assert (await me(service, each)).status_code == 401
            assert (await refresh(service, each.refresh_token)).status_code == 401

    async def test_the_link_that_undoes_it_lives_for_seven_days(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        await create_account(mailing_service)
        await request_move(mailing_service, await log_in(mailing_service))
        await confirm_move(mailing_service, mailing_service.mailbox.token())

        async with database.session() as session:
            [token] = (await session.scalars(select(UserTokenModel))).all()
        assert timedelta(days=6, hours=23, minutes=59) < token.expires_at - utc_now() <= timedelta(days=7)

    async def test_it_survives_that_the_thief_changes_the_password_and_moves_on(
        self, mailing_service: MailingService
    ) -> None:
        service = mailing_service
        user_id = await create_account(service)
        thief = await log_in(service)
        await request_move(service, thief, "thief@example.com")
        await confirm_move(service, service.mailbox.token())
        undo = service.mailbox.token()
        await change_password(service, thief)
        await request_move(service, thief, "hideout@example.com", NEW_PASSWORD)
        await confirm_move(service, service.mailbox.token())

        assert (await revert_move(service, undo)).status_code == 204

        assert (await me(service, thief)).status_code == 401
        await request_reset(service)
        assert service.mailbox.messages[-1].to == "ana@example.com"
        assert (await reset(service, service.mailbox.token(), "the-owners-new-password")).status_code == 204
        assert (await post_log_in(service, password="the-owners-new-password")).json()["user_id"] == user_id

    async def test_a_deleted_account_is_told_and_then_nothing_of_the_person_is_left(
        self,
        service: Service,
        queueing: Service,
        database: AsyncDatabaseManager,
        dispatcher: Dispatcher,
        mailbox: Mailbox,
    ) -> None:
        await create_account(service, name="Ana the Unique")
        who = await log_in(service)
        await request_reset(queueing)
        await request_move(queueing, who)
        await leave(queueing, who)
        [mail] = await list_mails(database)
        assert (mail.kind, mail.user_id) == (MessageKind.ACCOUNT_DELETED, None)

        await dispatcher.dispatch_due()

        [message] = mailbox.messages
        assert_notice(message, "ana@example.com", "Your account was deleted")
        assert await rows_about_people(database) == []

    async def test_a_thief_who_deletes_the_account_at_once_cannot_silence_the_notice_to_the_old_address(
        self, service: Service, queueing: Service, dispatcher: Dispatcher, mailbox: Mailbox
    ) -> None:
        await create_account(service)
        thief = await log_in(service)
        await request_move(queueing, thief, "thief@example.com")
        await dispatcher.dispatch_due()
        await confirm_move(queueing, mailbox.token())

        await leave(queueing, thief)
        await dispatcher.dispatch_due()

        assert "ana@example.com" in {message.to for message in mailbox.messages}


class TestReadiness:
    async def test_a_mail_that_waits_for_minutes_is_told(
        self, queueing: Service, database: AsyncDatabaseManager, caplog: pytest.LogCaptureFixture
    ) -> None:
        await sign_up(queueing)
        assert (await queueing.client.get("/health/ready")).json() == {"status": "ok", "mail": "ok"}
        long_ago = utc_now() - timedelta(minutes=6)
        await change_mails(database, created_at=long_ago, due_at=long_ago)

        response = await queueing.client.get("/health/ready")

        assert (response.status_code, response.json()) == (200, {"status": "ok", "mail": "stuck"})
        assert "1 mails are stuck: see `python -m src outbox list`" in caplog.text

    async def test_a_mail_that_fails_for_minutes_is_told_while_it_waits_for_its_next_attempt(
        self, queueing: Service, database: AsyncDatabaseManager
    ) -> None:
        await sign_up(queueing)
        now = utc_now()
        await change_mails(
            database, attempts=7, created_at=now - timedelta(minutes=6), due_at=now + timedelta(minutes=5)
        )

        assert (await queueing.client.get("/health/ready")).json()["mail"] == "stuck"

    async def test_a_dead_letter_is_told(self, queueing: Service, database: AsyncDatabaseManager) -> None:
        await sign_up(queueing)
        await change_mails(database, status=OutboxStatus.DEAD)

        assert (await queueing.client.get("/health/ready")).json()["mail"] == "stuck"

    async def test_a_mail_that_waits_only_for_its_hour_is_not_stuck(
        self, queueing: Service, database: AsyncDatabaseManager
    ) -> None:
        await sign_up(queueing)
        now = utc_now()
        await change_mails(database, created_at=now - timedelta(minutes=30), due_at=now + timedelta(minutes=30))

        assert (await queueing.client.get("/health/ready")).json()["mail"] == "ok"


async def drain(database_url: str, carrier: Any) -> None:
    database = AsyncDatabaseManager(database_url)
    dispatcher = Dispatcher(database, carrier, make_settings())
    while await dispatcher.dispatch_due():
        pass
    await database.disconnect()


class TestManyAtOnce:
    async def test_two_dispatchers_send_five_hundred_mails_once_each(
        self, database: AsyncDatabaseManager, database_url: str, mailbox: Mailbox
    ) -> None:
        await queue_notices(database, 500)

        await asyncio.gather(drain(database_url, mailbox), drain(database_url, mailbox))

        assert Counter(message.to for message in mailbox.messages) == {f"u{n}@example.com": 1 for n in range(500)}
        assert Counter(mail.status for mail in await list_mails(database)) == {OutboxStatus.SENT: 500}

    @pytest.mark.slow
    async def test_two_dispatchers_send_five_hundred_mails_once_each_by_smtp(
        self, database: AsyncDatabaseManager, database_url: str
    ) -> None:
        await queue_notices(database, 500)

        with MailServer() as server:
            carrier = EmailUtils(host="127.0.0.1", port=server.port, sender="accounts@example.com", tls="none")
            await asyncio.gather(drain(database_url, carrier), drain(database_url, carrier))

        assert Counter(str(mail["To"]) for mail in server.mails) == {f"u{n}@example.com": 1 for n in range(500)}
        assert len({mail["Message-ID"] for mail in server.mails}) == 500
