"""Emails that wait: queued, claimed by lease, and settled by whoever holds the lease."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, delete, func, or_, select, update

from src.db.base import utc_now
from src.db.models import OutboxEmailModel, OutboxStatus, UserModel
from src.db.repositories.base import BaseRepository, Condition

_DEAD_LETTERS = (OutboxStatus.DEAD, OutboxStatus.REFUSED)
_UNSENT = (OutboxStatus.QUEUED, *_DEAD_LETTERS)


class OutboxRepository(BaseRepository[OutboxEmailModel]):
    model = OutboxEmailModel

    async def lock_recipient(self, to_email: str, user_id: UUID | None) -> None:
        """Until the transaction ends, nobody else queues to this address: looking and adding are two statements.

        The user's row comes first, as everywhere; adding the email would lock it later. (SQLite has one writer.)
        """
        if self._is_sqlite:
            return
        await self._session.execute(
            select(UserModel.id).where(UserModel.id == user_id).with_for_update(read=True, key_share=True)
        )
        await self._session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(to_email, 0))))

    async def is_waiting(self, kind: str, *, to_email: str, user_id: UUID | None = None) -> bool:
        """Whether such an email to the address (about that user) is queued already."""
        filters: dict[str, object] = {"kind": kind, "to_email": to_email, "status": OutboxStatus.QUEUED}
        return await self.exists(filters | ({"user_id": user_id} if user_id else {}))

    async def claim(self, *, limit: int, lease: timedelta) -> Sequence[OutboxEmailModel]:
        """Take emails that are due, for as long as the lease lasts. No two claims get the same one meanwhile."""
        now = utc_now()
        due = (
            select(OutboxEmailModel.id)
            .where(
                OutboxEmailModel.status == OutboxStatus.QUEUED,
                OutboxEmailModel.due_at <= now,
                or_(OutboxEmailModel.leased_until.is_(None), OutboxEmailModel.leased_until <= now),
            )
            .order_by(OutboxEmailModel.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        ids = (await self._session.scalars(due)).all()
        statement = (
            update(OutboxEmailModel)
            .where(OutboxEmailModel.id.in_(ids))
            .values(lease_id=uuid4(), leased_until=now + lease, attempts=OutboxEmailModel.attempts + 1)
            .returning(OutboxEmailModel)
        )
        return (await self._session.scalars(statement, execution_options={"populate_existing": True})).all()

    async def is_held(self, email: OutboxEmailModel) -> bool:
        """Whether the email is still there, and still ours."""
        return await self.exists({"id": email.id, "lease_id": email.lease_id})

    async def mark_sent(self, email: OutboxEmailModel) -> None:
        """Forget the content. Of somebody who has left, forget the email."""
        if email.user_id is None:
            await self._session.execute(delete(OutboxEmailModel).where(*_held(email)))
            return
        await self._settle(email, status=OutboxStatus.SENT, content=None, last_error=None)

    async def retry_at(self, email: OutboxEmailModel, due_at: datetime, *, error: str) -> None:
        """Queue it again for then."""
        await self._settle(email, due_at=due_at, last_error=error[:100])

    async def give_up(self, email: OutboxEmailModel, *, error: str, is_refused: bool) -> None:
        """Make it a dead letter, by a refusal or for a reason of ours."""
        status = OutboxStatus.REFUSED if is_refused else OutboxStatus.DEAD
        await self._settle(email, status=status, last_error=error[:100])

    async def release(self, email: OutboxEmailModel) -> None:
        """Give an email back that was not tried."""
        await self._settle(email, attempts=email.attempts - 1)

    async def drop(self, email: OutboxEmailModel) -> None:
        """Forget the content of an email that has become pointless."""
        await self._settle(email, status=OutboxStatus.DROPPED, content=None, last_error=None)

    async def cancel(self, user_id: UUID, kinds: Collection[str], *, queued_after: datetime | None = None) -> None:
        """Forget the unsent emails of these kinds about a user, all or those queued after a moment."""
        later = () if queued_after is None else (OutboxEmailModel.created_at > queued_after,)
        await self._session.execute(
            delete(OutboxEmailModel).where(
                OutboxEmailModel.user_id == user_id,
                OutboxEmailModel.kind.in_(kinds),
                OutboxEmailModel.status.in_(_UNSENT),
                *later,
            )
        )

    async def detach_from_user(self, user_id: UUID, kinds: Collection[str]) -> None:
        """Let the queued emails of these kinds reach their reader although the user goes: a thief who moves an account
        and deletes it at once must not silence the notice to the owner."""
        await self._session.execute(
            update(OutboxEmailModel)
            .where(
                OutboxEmailModel.user_id == user_id,
                OutboxEmailModel.kind.in_(kinds),
                OutboxEmailModel.status == OutboxStatus.QUEUED,
            )
            .values(user_id=None)
        )

    async def forget_address(self, email: str) -> None:
        await self._session.execute(delete(OutboxEmailModel).where(OutboxEmailModel.to_email == email))

    async def retry(self, email_id: UUID | None = None) -> int:
        """Queue a dead letter (or all of them) again; how many they were."""
        conditions = () if email_id is None else (OutboxEmailModel.id == email_id,)
        statement = update(OutboxEmailModel).where(OutboxEmailModel.status.in_(_DEAD_LETTERS), *conditions)
        return await self._count_changed(statement.values(status=OutboxStatus.QUEUED, due_at=utc_now(), attempts=0))

    async def list_unsent(self, *, limit: int) -> Sequence[OutboxEmailModel]:
        query = (
            select(OutboxEmailModel)
            .where(OutboxEmailModel.status.in_(_UNSENT))
            .order_by(OutboxEmailModel.id)
            .limit(limit)
        )
        return (await self._session.scalars(query)).all()

    async def measure_queue(self) -> tuple[int, datetime | None]:
        """How many emails are queued, and since when the oldest of them."""
        query = select(func.count(), func.min(OutboxEmailModel.created_at)).where(
            OutboxEmailModel.status == OutboxStatus.QUEUED
        )
        count, oldest = (await self._session.execute(query)).one()
        return count, oldest

    async def count_stuck(self, waiting_since: datetime) -> int:
        """Emails that nobody takes or that fail since before then, and dead letters, but for those that were refused:
        anybody may sign up with an address that takes no email."""
        fails = (OutboxEmailModel.attempts > 0) & (OutboxEmailModel.created_at < waiting_since)
        query = select(func.count()).where(
            or_(
                OutboxEmailModel.status == OutboxStatus.DEAD,
                (OutboxEmailModel.status == OutboxStatus.QUEUED) & ((OutboxEmailModel.due_at < waiting_since) | fails),
            )
        )
        return (await self._session.scalars(query)).one()

    def obsolete(self, *, settled_before: datetime, dead_before: datetime) -> Condition:
        """Emails that were sent or dropped, and dead letters that nobody has queued again."""
        status, at = OutboxEmailModel.status, OutboxEmailModel.updated_at
        return or_(
            status.in_((OutboxStatus.SENT, OutboxStatus.DROPPED)) & (at < settled_before),
            status.in_(_DEAD_LETTERS) & (at < dead_before),
        )

    async def _settle(self, email: OutboxEmailModel, **values: object) -> None:
        statement = update(OutboxEmailModel).where(*_held(email)).values(lease_id=None, leased_until=None, **values)
        await self._session.execute(statement)


def _held(email: OutboxEmailModel) -> tuple[ColumnElement[bool], ...]:
    """Whether the lease is still the one under which the email was claimed."""
    return OutboxEmailModel.id == email.id, OutboxEmailModel.lease_id == email.lease_id
