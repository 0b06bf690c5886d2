"""The outbox: use cases put emails into it in their own transaction, the dispatcher takes them out and sends them.

A use case never waits for a mail server, and an email is not lost with a process: it stays until somebody has sent it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from src.core.kinds import EmailKind
from src.core.logs import RareWarning
from src.core.settings import Settings
from src.db.base import utc_now
from src.db.database import AsyncDatabaseManager
from src.db.models import OutboxEmailModel, OutboxStatus
from src.db.repositories import OutboxRepository
from src.db.unit_of_work import UnitOfWork, open_unit_of_work
from src.email import Message, MessageTemplates, SendsEmail
from src.email.catalogue import CATALOGUE

log = logging.getLogger(__name__)

STUCK_AFTER = timedelta(minutes=5)

BATCH = 10
POLL_SECONDS = 1.0
STOP_SECONDS = 2.0
ATTEMPT_SECONDS = 30.0  # less than a lease, so that two dispatchers never send one email at once
FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 3600.0


class Outbox:
    """Where use cases leave emails. What they leave is sent if, and only if, their transaction commits.

    Where SMTP is not configured (`is_wired` is false), nothing is left.
    """

    def __init__(self, uow: UnitOfWork, *, is_wired: bool, wake: Callable[[], None]) -> None:
        self.is_wired = is_wired
        self._emails = uow.emails
        self._wake = wake
        self._has_queued = False

    async def queue(
        self,
        kind: EmailKind,
        *,
        to: str,
        user_id: UUID | None,
        where: str | None,
        is_for_nobody: bool = False,
        **content: str | None,
    ) -> None:
        """Leave an email. `where` is where the request came from, which most tell.

        One that is for nobody, or like another that waits already, is stored as dropped: whoever asks must not see by
        the time that it takes whether an address is known, so the statements are the same. A notice is never dropped.
        """
        if not self.is_wired:
            return
        needs_sending = CATALOGUE[kind].is_notice or await self._is_first(kind, to, user_id)
        is_queued = needs_sending and not is_for_nobody
        email = OutboxEmailModel(kind=kind, to_email=to, user_id=user_id, status=OutboxStatus.DROPPED)
        if is_queued:
            email.status = OutboxStatus.QUEUED
            email.content = {"when": f"{utc_now():%Y-%m-%d %H:%M} UTC", "where": where} | content
        await self._emails.add(email)
        self._has_queued |= is_queued

    def wake(self) -> None:
        """After a commit: wake the dispatcher, if something was queued."""
        if self._has_queued:
            self._has_queued = False
            self._wake()

    async def _is_first(self, kind: EmailKind, to: str, user_id: UUID | None) -> bool:
        """Whether no such email waits already."""
        await self._emails.lock_recipient(to, user_id)
        return not await self._emails.is_waiting(kind, to_email=to, user_id=user_id)


async def issue_link(
    uow: UnitOfWork,
    settings: Settings,
    kind: EmailKind,
    user_id: UUID,
    *,
    begins_at: datetime | None = None,
    new_email: str | None = None,
    session_id: UUID | None = None,
) -> str:
    """A new one-time token in the URL that emails of this kind bring. Its lifetime begins now, if not at `begins_at`.
    A step of a use case: it does not commit."""
    link = CATALOGUE[kind].link
    assert link is not None  # noqa: S101 - only asked for kinds that have one
    seconds, template = link.terms(settings)
    expires_at = (begins_at or utc_now()) + timedelta(seconds=seconds)
    token = await uow.tokens.issue(
        user_id, link.purpose, expires_at=expires_at, new_email=new_email, session_id=session_id
    )
    return settings.link(template, token)


class Dispatcher:
    """Sends what is due, in as many processes as one likes."""

    def __init__(self, database: AsyncDatabaseManager, carrier: SendsEmail, settings: Settings) -> None:
        self.database = database
        self._carrier = carrier
        self._settings = settings
        self._templates = MessageTemplates(settings.email_templates_dir)
        self._lease = timedelta(seconds=settings.outbox_lease_seconds)
        self._awake = asyncio.Event()
        self._is_stopping = False
        self._warning = RareWarning(log)

    def wake(self) -> None:
        """Poll now. Called when a use case of this process has committed; those of others are found by polling."""
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
        """Send emails until stopped."""
        while not self._is_stopping:
            self._awake.clear()
            try:
                had_work = await self.dispatch_due()
            except Exception as error:  # noqa: BLE001 - the database may be down; the emails stay
                self._warning.give(f"The outbox could not be read ({type(error).__qualname__})")
                had_work = False
            if not had_work and not self._is_stopping:
                await self._sleep()

    async def dispatch_due(self) -> bool:
        """Send a batch of what is due, and tell whether there was any."""
        async with open_unit_of_work(self.database) as uow:
            await uow.begin()
            emails = await uow.emails.claim(limit=BATCH, lease=self._lease)
            await uow.commit()
        async with asyncio.TaskGroup() as sending:
            for email in emails:
                sending.create_task(self._deliver(email))
        return bool(emails)

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._awake.wait()
        except TimeoutError:
            pass

    async def _deliver(self, email: OutboxEmailModel) -> None:
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                message = await self._compose(email)
                if message is not None:
                    await self._carrier.send(message)
        except asyncio.CancelledError:
            await self._settle(lambda emails: emails.release(email))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the email is tried again
            await self._retry_or_give_up(email, error)
            return
        await self._settle(lambda emails: emails.mark_sent(email) if message else emails.drop(email))

    async def _compose(self, email: OutboxEmailModel) -> Message | None:
        """Make the message, with its one-time token if it has one. `None` if there is no reason to send it any more."""
        kind = EmailKind(email.kind)
        entry, url = CATALOGUE[kind], None
        async with open_unit_of_work(self.database) as uow:
            await uow.begin()
            await uow.users.lock_owner(email.to_email, and_user=email.user_id)
            # Since it was claimed, another may have claimed it, or a new password have cancelled it.
            if not await uow.emails.is_held(email):
                return None
            user = await uow.users.find_record(email.user_id) if email.user_id else None
            if entry.is_pointless(user, email.to_email, self._settings):
                return None
            if user and entry.link:
                url = await issue_link(
                    uow,
                    self._settings,
                    kind,
                    user.id,
                    begins_at=user.created_at if entry.link.ends_with_sign_up else None,
                    new_email=email.to_email if entry.link.moves_account else None,
                    session_id=await _find_session(uow, email),
                )
            await uow.commit()
        values = {**(email.content or {}), "url": url}
        return self._templates.render(
            kind, self._settings.auth_default_locale, id_=email.id, to=email.to_email, values=values
        )

    async def _retry_or_give_up(self, email: OutboxEmailModel, error: Exception) -> None:
        refusal = refusal_of(error)
        code = getattr(error, "code", "") if refusal is None else refusal
        reason = f"{type(error).__qualname__} {code}".strip()  # its text may quote the email
        is_last = email.attempts >= self._settings.outbox_max_attempts or is_permanent(refusal)
        if is_last:
            await self._settle(lambda emails: emails.give_up(email, error=reason, is_refused=refusal is not None))
        else:
            due_at = utc_now() + back_off(email.attempts)
            await self._settle(lambda emails: emails.retry_at(email, due_at, error=reason))
        level = logging.ERROR if is_last else logging.WARNING
        log.log(level, "Email %s (%s) failed, attempt %d: %s", email.id, email.kind, email.attempts, reason)

    async def _settle(self, settle: Callable[[OutboxRepository], Awaitable[None]]) -> None:
        """Write down what became of an email; to the end, even if cancelled, since what is not marked is sent again."""
        writing = asyncio.create_task(self._write(settle))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing
            raise

    async def _write(self, settle: Callable[[OutboxRepository], Awaitable[None]]) -> None:
        try:
            async with open_unit_of_work(self.database) as uow:
                await uow.begin()
                await settle(uow.emails)
                await uow.commit()
        except Exception as error:  # noqa: BLE001 - it must not end the others of its batch; the lease ends by itself
            log.warning("What became of an email could not be stored (%s)", type(error).__qualname__)


async def _find_session(uow: UnitOfWork, email: OutboxEmailModel) -> UUID | None:
    """The session that asked for the email, unless it has been forgotten while the email waited."""
    session_id = (email.content or {}).get("session_id")
    if session_id is None or not await uow.sessions.exists({"id": UUID(session_id)}):
        return None
    return UUID(session_id)


def refusal_of(error: Exception) -> int | None:
    """The reply by which a mail server refused this recipient or this message. `None` for every other error: of the
    connection, the log-in or the sender, which whoever runs the service has to mend.

    By their names in aiosmtplib, which is loaded only where emails are sent; another carrier may raise the like.
    """
    [first, *_] = getattr(error, "recipients", None) or [error]
    is_refusal = type(first).__name__ in ("SMTPRecipientRefused", "SMTPDataError")
    return getattr(first, "code", None) if is_refusal else None


def is_permanent(refusal: int | None) -> bool:
    """Whether trying again is of no use (RFC 5321, section 4.2.1). A full mailbox (552) may be emptied: who fills one
    must not silence a notice by it."""
    return refusal is not None and 500 <= refusal < 600 and refusal != 552


def back_off(attempts: int) -> timedelta:
    """How long to wait after so many attempts: doubling from seconds to an hour, and never in step with others."""
    seconds = min(FIRST_RETRY_SECONDS * 2 ** min(attempts - 1, 16), LONGEST_RETRY_SECONDS)
    return timedelta(seconds=seconds * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret


async def list_unsent(database: AsyncDatabaseManager, *, limit: int) -> Sequence[OutboxEmailModel]:
    """The emails that wait and the dead letters of both kinds, the oldest first."""
    async with open_unit_of_work(database) as uow:
        return await uow.emails.list_unsent(limit=limit)


async def retry_dead_letters(database: AsyncDatabaseManager, email_id: UUID | None) -> int:
    """Queue one dead letter again, or all of them; how many they were."""
    async with open_unit_of_work(database) as uow:
        await uow.begin()
        count = await uow.emails.retry(email_id)
        await uow.commit()
    return count
