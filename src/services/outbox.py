"""The outbox: flows put mail into it in their own transaction, the dispatcher takes it out and sends it.

A flow never waits for a mail server, and a mail is not lost with a process: it stays until somebody has sent it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.settings import Settings
from src.db.base import utc_now
from src.db.database import AsyncDatabaseManager, begin_writing
from src.db.models import OutboxEmailModel, TokenPurpose, UserModel
from src.db.repositories import OutboxRepository, UserRepository, UserTokenRepository
from src.email import Message, MessageKind, MessageTemplates, SendsMail

log = logging.getLogger(__name__)

LIMIT_WINDOW = timedelta(hours=1)
REVERT_LIFETIME = timedelta(days=7)
STUCK_AFTER = timedelta(minutes=5)

BATCH = 10
POLL_SECONDS = 1.0
STOP_SECONDS = 2.0
SEND_TIMEOUT_SECONDS = 30.0  # less than a lease, so that two dispatchers never send one mail at once
FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 3600.0

LINK_KINDS = (MessageKind.ACTIVATION, MessageKind.PASSWORD_RESET, MessageKind.EMAIL_CHANGE, MessageKind.INVITATION)


class Outbox:
    """Where flows leave mail. What they leave is sent if, and only if, their transaction commits."""

    def __init__(self, session: AsyncSession, *, limit_per_hour: int, wake: Callable[[], None]) -> None:
        self._session = session
        self._mails = OutboxRepository(session)
        self._limit = limit_per_hour
        self._wake = wake

    async def queue(
        self, kind: MessageKind, *, to: str, user_id: UUID | None, where: str | None, **content: str | None
    ) -> bool:
        """Leave a mail; false if one that waits will do. `where` is where the request came from, which most mails tell.

        An address gets so many mails of a kind in an hour. More wait until the hour is over, all in one; so does a
        request for a mail about the same user that waits already. Notices are exempt: nobody may silence them.
        """
        due_at = utc_now() if kind.is_notice else await self._next_place(kind, to, user_id)
        if due_at is None:
            return False
        values = {"when": f"{utc_now():%Y-%m-%d %H:%M} UTC", "where": where} | content
        await self._mails.add(OutboxEmailModel(kind=kind, to_email=to, user_id=user_id, content=values, due_at=due_at))
        event.listen(self._session.sync_session, "after_commit", lambda _session: self._wake(), once=True)
        return True

    async def _next_place(self, kind: MessageKind, to: str, user_id: UUID | None) -> datetime | None:
        """When the mail may go; `None` if another that waits will do."""
        await self._mails.take_turn(to, user_id)
        if await self._mails.is_waiting(kind, to_email=to, user_id=user_id):
            return None
        now = utc_now()
        recent = await self._mails.find_recent(kind, to_email=to, since=now - LIMIT_WINDOW, limit=self._limit)
        if len(recent) < self._limit:
            return now
        if await self._mails.is_waiting(kind, to_email=to):
            return None
        return recent[-1] + LIMIT_WINDOW


class Dispatcher:
    """Sends what is due, in as many processes as one likes."""

    def __init__(self, database: AsyncDatabaseManager, email: SendsMail, settings: Settings) -> None:
        self.database = database
        self._email = email
        self._settings = settings
        self._templates = MessageTemplates(settings.email_templates_dir)
        self._lease = timedelta(seconds=settings.outbox_lease_seconds)
        self._awake = asyncio.Event()
        self._is_stopping = False

    def wake(self) -> None:
        """Look at once. Called when a flow of this process has committed; those of others are found by polling."""
        self._awake.set()

    def stop(self) -> None:
        """End `run` once what it holds is sent. Cancelling `run` instead releases it."""
        self._is_stopping = True
        self._awake.set()

    async def finish(self, running: asyncio.Task[None]) -> None:
        """Stop `run`: what is being sent may take a moment to get through, and is released if it does not."""
        self.stop()
        await asyncio.wait([running], timeout=STOP_SECONDS)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def run(self) -> None:
        """Send mail until stopped."""
        while not self._is_stopping:
            self._awake.clear()
            try:
                had_work = await self.dispatch_due()
            except Exception as error:  # noqa: BLE001 - the database may be away; the mail is not
                log.warning("The outbox could not be read (%s)", type(error).__qualname__)
                had_work = False
            if not had_work and not self._is_stopping:
                await self._sleep()

    async def dispatch_due(self) -> bool:
        """Send a batch of what is due, and tell whether there was any."""
        async with self.database.session() as session:
            await begin_writing(session)
            mails = await OutboxRepository(session).claim(limit=BATCH, lease=self._lease)
            await session.commit()
        async with asyncio.TaskGroup() as sending:
            for mail in mails:
                sending.create_task(self._deliver(mail))
        return bool(mails)

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._awake.wait()
        except TimeoutError:
            pass

    async def _deliver(self, mail: OutboxEmailModel) -> None:
        try:
            message = await self._mint(mail)
            if message is not None:
                async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                    await self._email.send(message)
        except asyncio.CancelledError:
            await self._settle(lambda mails: mails.release(mail))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the mail is tried again
            await self._retry_later(mail, error)
            return
        await self._settle(lambda mails: mails.mark_sent(mail) if message else mails.drop(mail))

    async def _retry_later(self, mail: OutboxEmailModel, error: Exception) -> None:
        reason = f"{type(error).__qualname__} {getattr(error, 'code', '')}".strip()  # its text may quote the mail
        retry_at = None
        if mail.attempts < self._settings.outbox_max_attempts:
            retry_at = utc_now() + back_off(mail.attempts)
        await self._settle(lambda mails: mails.mark_failed(mail, error=reason, retry_at=retry_at))
        level = logging.WARNING if retry_at else logging.ERROR
        log.log(level, "Mail %s (%s) failed, attempt %d: %s", mail.id, mail.kind, mail.attempts, reason)

    async def _settle(self, settle: Callable[[OutboxRepository], Awaitable[None]]) -> None:
        """Write down what became of a mail; to the end, even if cancelled, since what is not marked is sent again."""
        writing = asyncio.create_task(self._write(settle))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing
            raise

    async def _write(self, settle: Callable[[OutboxRepository], Awaitable[None]]) -> None:
        try:
            async with self.database.session() as session:
                await begin_writing(session)
                await settle(OutboxRepository(session))
                await session.commit()
        except Exception as error:  # noqa: BLE001 - it must not end the others of its batch; the lease ends by itself
            log.warning("What became of a mail could not be stored (%s)", type(error).__qualname__)

    async def _mint(self, mail: OutboxEmailModel) -> Message | None:
        """Make the message, with its one-time token if it has one. `None` if there is no reason to send it any more."""
        kind = MessageKind(mail.kind)
        async with self.database.session() as session:
            await begin_writing(session)
            await UserRepository(session).lock_address(mail.to_email, and_user=mail.user_id)
            # Since it was claimed, another may have claimed it, or a new password have ended it.
            if not await OutboxRepository(session).is_held(mail):
                return None
            user = await UserRepository(session).find({"id": mail.user_id}) if mail.user_id else None
            url = None
            if not kind.is_notice or kind is MessageKind.EMAIL_CHANGED:
                if user is None and kind is not MessageKind.EMAIL_CHANGED:
                    return None
                if user and not _still_holds(kind, mail, user):
                    return None
                if user and kind is not MessageKind.ALREADY_REGISTERED:
                    url = await self._issue_link(UserTokenRepository(session), kind, mail, user)
            await session.commit()
        values = {**(mail.content or {}), "url": url}
        return self._templates.render(
            kind, self._settings.auth_default_locale, id_=mail.id, to=mail.to_email, values=values
        )

    async def _issue_link(
        self, tokens: UserTokenRepository, kind: MessageKind, mail: OutboxEmailModel, user: UserModel
    ) -> str:
        settings, content = self._settings, mail.content or {}
        purpose, seconds, template = {
            MessageKind.ACTIVATION: (
                TokenPurpose.ACTIVATION,
                settings.auth_activation_ttl_seconds,
                settings.auth_activation_url_template,
            ),
            MessageKind.INVITATION: (
                TokenPurpose.INVITATION,
                settings.auth_invitation_ttl_seconds,
                settings.auth_invitation_url_template,
            ),
            MessageKind.PASSWORD_RESET: (
                TokenPurpose.PASSWORD_RESET,
                settings.auth_password_reset_ttl_seconds,
                settings.auth_password_reset_url_template,
            ),
            MessageKind.EMAIL_CHANGE: (
                TokenPurpose.EMAIL_CHANGE,
                settings.auth_email_change_ttl_seconds,
                settings.auth_email_change_url_template,
            ),
            MessageKind.EMAIL_CHANGED: (
                TokenPurpose.EMAIL_REVERT,
                REVERT_LIFETIME.total_seconds(),
                "{SERVER_PUBLIC_URL}/email-revert?token={token}",
            ),
        }[kind]
        session_id = content.get("session_id")
        token = await tokens.issue(
            user.id,
            purpose,
            timedelta(seconds=seconds),
            new_email=mail.to_email if kind in (MessageKind.EMAIL_CHANGE, MessageKind.EMAIL_CHANGED) else None,
            session_id=UUID(session_id) if session_id else None,
        )
        return settings.link(template, token)


def _still_holds(kind: MessageKind, mail: OutboxEmailModel, user: UserModel) -> bool:
    """Whether the user and the address still are what they were when the mail was queued."""
    if kind in (MessageKind.ACTIVATION, MessageKind.INVITATION):
        return user.activated_at is None and user.email == mail.to_email
    if kind is MessageKind.PASSWORD_RESET:
        return user.is_active and user.email == mail.to_email
    if kind is MessageKind.ALREADY_REGISTERED:
        return user.email == mail.to_email
    return user.is_active  # an address that the account moves to, or has left


def back_off(attempts: int) -> timedelta:
    """How long to wait after so many attempts: doubling from seconds to an hour, and never in step with others."""
    seconds = min(FIRST_RETRY_SECONDS * 2 ** min(attempts - 1, 16), LONGEST_RETRY_SECONDS)
    return timedelta(seconds=seconds * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret


async def list_unsent(database: AsyncDatabaseManager, *, limit: int) -> Sequence[OutboxEmailModel]:
    """The mails that wait and the dead letters, the oldest first."""
    async with database.session() as session:
        return await OutboxRepository(session).list_unsent(limit=limit)


async def retry_dead_letters(database: AsyncDatabaseManager, mail_id: UUID | None) -> int:
    """Queue one dead letter again, or all of them; how many they were."""
    async with database.session() as session:
        await begin_writing(session)
        count = await OutboxRepository(session).retry(mail_id)
        await session.commit()
    return count
