"""Sessions: started, rotated, looked at and revoked."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Row, bindparam, delete, or_, select, update

from src.core.callers import Principal
from src.core.exceptions import SessionNotFoundError
from src.db.base import utc_now
from src.db.models import SessionModel, UserModel
from src.db.repositories.base import BaseRepository


def _is_live(now: ColumnElement[datetime] | datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        SessionModel.revoked_at.is_(None),
        SessionModel.idle_expires_at > now,
        SessionModel.expires_at > now,
    )


_PRINCIPAL = (
    select(UserModel.id, UserModel.email, UserModel.is_admin, SessionModel.id)
    .join(SessionModel, SessionModel.user_id == UserModel.id)
    .where(
        SessionModel.id == bindparam("session_id"),
        UserModel.id == bindparam("user_id"),
        UserModel.is_active,
        *_is_live(bindparam("now", type_=SessionModel.expires_at.type)),
    )
)


class SessionRepository(BaseRepository[SessionModel]):
    model = SessionModel
    not_found = SessionNotFoundError

    async def find_principal(self, user_id: UUID, session_id: UUID) -> Principal | None:
        """The user of a live session, in one indexed read; nobody, if either has ended or is disabled."""
        values = {"user_id": user_id, "session_id": session_id, "now": utc_now()}
        row = (await self._session.execute(_PRINCIPAL, values)).one_or_none()
        return None if row is None else Principal(*row)

    async def rotate(
        self, session_id: UUID, generation: int, *, idle: timedelta
    ) -> Row[UUID, datetime, datetime] | None:
        """Move the session on from this generation, if it is the current one; of two who try at once, one does.

        The row holds `user_id`, `idle_expires_at` and `expires_at`.
        """
        now = utc_now()
        active_user = select(UserModel.id).where(UserModel.id == SessionModel.user_id, UserModel.is_active)
        statement = (
            update(SessionModel)
            .where(
                SessionModel.id == session_id,
                SessionModel.generation == generation,
                *_is_live(now),
                active_user.exists(),
            )
            .values(generation=generation + 1, last_used_at=now, idle_expires_at=now + idle)
            .returning(SessionModel.user_id, SessionModel.idle_expires_at, SessionModel.expires_at)
        )
        return (await self._session.execute(statement)).one_or_none()

    async def find_live(self, session_id: UUID) -> SessionModel | None:
        query = (
            select(SessionModel)
            .join(UserModel, UserModel.id == SessionModel.user_id)
            .where(SessionModel.id == session_id, UserModel.is_active, *_is_live(utc_now()))
        )
        return (await self._session.scalars(query)).one_or_none()

    async def list_live(self, user_id: UUID) -> Sequence[SessionModel]:
        """The newest first."""
        query = (
            select(SessionModel)
            .where(SessionModel.user_id == user_id, *_is_live(utc_now()))
            .order_by(SessionModel.id.desc())
        )
        return (await self._session.scalars(query)).all()

    async def revoke(self, session_id: UUID, *, user_id: UUID | None = None) -> bool:
        """End a session (of this user, if one is named); false if it had ended, or is not theirs."""
        owned = () if user_id is None else (SessionModel.user_id == user_id,)
        return bool(await self._revoke(SessionModel.id == session_id, *_is_live(utc_now()), *owned))

    async def revoke_all(self, user_id: UUID, *, except_id: UUID | None = None) -> None:
        kept = () if except_id is None else (SessionModel.id != except_id,)
        await self._revoke(SessionModel.user_id == user_id, *kept)

    async def revoke_oldest(self, user_id: UUID, *, keep: int) -> None:
        """End all but the newest sessions of a user."""
        newest = (
            select(SessionModel.id)
            .where(SessionModel.user_id == user_id, *_is_live(utc_now()))
            .order_by(SessionModel.id.desc())
            .limit(keep)
        )
        await self._revoke(SessionModel.user_id == user_id, SessionModel.id.not_in(newest))

    async def delete_ended(self) -> int:
        """Forget sessions that can never be used again; how many they were."""
        now = utc_now()
        ended = or_(
            SessionModel.revoked_at.is_not(None), SessionModel.idle_expires_at <= now, SessionModel.expires_at <= now
        )
        deleted = await self._session.scalars(delete(SessionModel).where(ended).returning(SessionModel.id))
        return len(deleted.all())

    async def _revoke(self, *which: ColumnElement[bool]) -> Sequence[UUID]:
        statement = (
            update(SessionModel)
            .where(SessionModel.revoked_at.is_(None), *which)
            .values(revoked_at=utc_now())
            .returning(SessionModel.id)
        )
        return (await self._session.scalars(statement)).all()
