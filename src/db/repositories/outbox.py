"""Mail that waits: queued, claimed by lease, and settled by whoever holds the lease."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, delete, func, or_, select, update

from src.db.base import utc_now
from src.db.models import OutboxEmailModel, OutboxStatus, UserModel
from src.db.repositories.base import BaseRepository


class OutboxRepository(BaseRepository[OutboxEmailModel]):
    model = OutboxEmailModel

    async def take_turn(self, to_email: str, user_id: UUID | None) -> None:
        """Until the transaction ends, nobody else queues to this address: counting and adding are two statements.

        The user's row comes first, as in every flow; adding the mail would lock it later. (SQLite has one writer.)
        """
        if self._is_sqlite:
            return
        await self._session.execute(
            select(UserModel.id).where(UserModel.id == user_id).with_for_update(read=True, key_share=True)
        )
        await self._session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(to_email, 0))))

    async def is_waiting(self, kind: str, *, to_email: str, user_id: UUID | None = None) -> bool:
        """Whether such a mail to the address (about that user) is queued already."""
        filters: dict[str, object] = {"kind": kind, "to_email": to_email, "status": OutboxStatus.QUEUED}
        return await self.exists(filters | ({"user_id": user_id} if user_id else {}))

    async def find_recent(self, kind: str, *, to_email: str, since: datetime, limit: int) -> Sequence[datetime]:
        """When the newest mails of a kind to an address were queued, the newest first."""
        query = (
            select(OutboxEmailModel.created_at)
            .where(
                OutboxEmailModel.to_email == to_email,
                OutboxEmailModel.kind == kind,
                OutboxEmailModel.created_at > since,
            )
            .order_by(OutboxEmailModel.created_at.desc())
            .limit(limit)
        )
        return (await self._session.scalars(query)).all()

    async def claim(self, *, limit: int, lease: timedelta) -> Sequence[OutboxEmailModel]:
        """Take mails that are due, for as long as the lease lasts. No two claims get the same one meanwhile."""
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

    async def is_held(self, mail: OutboxEmailModel) -> bool:
        """Whether the mail is still there, and still ours."""
        return await self.exists({"id": mail.id, "lease_id": mail.lease_id})

    async def mark_sent(self, mail: OutboxEmailModel) -> None:
        """Forget the content. Of somebody who has left, forget the mail."""
        if mail.user_id is None:
            await self._session.execute(delete(OutboxEmailModel).where(*_held(mail)))
            return
        await self._settle(mail, status=OutboxStatus.SENT, content=None, last_error=None)

    async def mark_failed(self, mail: OutboxEmailModel, *, error: str, retry_at: datetime | None) -> None:
        """Queue it again for `retry_at`; without one, it is a dead letter."""
        status = OutboxStatus.QUEUED if retry_at else OutboxStatus.DEAD
        await self._settle(mail, status=status, due_at=retry_at or mail.due_at, last_error=error[:100])

    async def release(self, mail: OutboxEmailModel) -> None:
        """Give a mail back that was not tried."""
        await self._settle(mail, attempts=mail.attempts - 1)

    async def drop(self, mail: OutboxEmailModel) -> None:
        """Forget the content of a mail that has become pointless. It counts against the limit as if it was sent: who
        asks for more and more resets would otherwise see by the time that it takes whether an address is known."""
        await self._settle(mail, status=OutboxStatus.SENT, content=None, last_error=None)

    async def end_links(self, user_id: UUID, kinds: Collection[str], *, queued_after: datetime | None = None) -> None:
        """Forget the unsent mails of these kinds about a user, all or those queued after a moment."""
        later = () if queued_after is None else (OutboxEmailModel.created_at > queued_after,)
        await self._session.execute(
            delete(OutboxEmailModel).where(
                OutboxEmailModel.user_id == user_id,
                OutboxEmailModel.kind.in_(kinds),
                OutboxEmailModel.status != OutboxStatus.SENT,
                *later,
            )
        )

    async def outlive(self, user_id: UUID, kinds: Collection[str]) -> None:
        """Let the queued mails of these kinds reach their reader although the user goes: a thief who moves an account
        and deletes it at once must not silence the notice to the owner."""
        await self._session.execute(
            update(OutboxEmailModel)
            .where(
                OutboxEmailModel.user_id == user_id,
                OutboxEmailModel.kind.in_(kinds),
                OutboxEmailModel.status != OutboxStatus.SENT,
            )
            .values(user_id=None)
        )

    async def forget_address(self, email: str) -> None:
        await self._session.execute(delete(OutboxEmailModel).where(OutboxEmailModel.to_email == email))

    async def retry(self, mail_id: UUID | None = None) -> int:
        """Queue a dead letter (or all of them) again; how many they were."""
        which = () if mail_id is None else (OutboxEmailModel.id == mail_id,)
        statement = (
            update(OutboxEmailModel)
            .where(OutboxEmailModel.status == OutboxStatus.DEAD, *which)
            .values(status=OutboxStatus.QUEUED, due_at=utc_now(), attempts=0)
            .returning(OutboxEmailModel.id)
        )
        return len((await self._session.scalars(statement)).all())

    async def list_unsent(self, *, limit: int) -> Sequence[OutboxEmailModel]:
        query = (
            select(OutboxEmailModel)
            .where(OutboxEmailModel.status != OutboxStatus.SENT)
            .order_by(OutboxEmailModel.id)
            .limit(limit)
        )
        return (await self._session.scalars(query)).all()

    async def count_stuck(self, waiting_since: datetime) -> int:
        """Dead letters, and mails that nobody takes or that fail since before then; not what waits for the limit."""
        fails = (OutboxEmailModel.attempts > 0) & (OutboxEmailModel.created_at < waiting_since)
        query = select(func.count()).where(
            or_(
                OutboxEmailModel.status == OutboxStatus.DEAD,
                (OutboxEmailModel.status == OutboxStatus.QUEUED) & ((OutboxEmailModel.due_at < waiting_since) | fails),
            )
        )
        return (await self._session.scalars(query)).one()

    async def delete_sent(self, before: datetime) -> int:
        """Forget mails that were sent before then; how many they were."""
        statement = (
            delete(OutboxEmailModel)
            .where(OutboxEmailModel.status == OutboxStatus.SENT, OutboxEmailModel.updated_at < before)
            .returning(OutboxEmailModel.id)
        )
        return len((await self._session.scalars(statement)).all())

    async def _settle(self, mail: OutboxEmailModel, **values: object) -> None:
        statement = update(OutboxEmailModel).where(*_held(mail)).values(lease_id=None, leased_until=None, **values)
        await self._session.execute(statement)


def _held(mail: OutboxEmailModel) -> tuple[ColumnElement[bool], ...]:
    """Whether the lease is still the one under which the mail was claimed."""
    return OutboxEmailModel.id == mail.id, OutboxEmailModel.lease_id == mail.lease_id
