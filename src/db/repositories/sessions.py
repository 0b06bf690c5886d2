"""Sessions: started, rotated, looked at and revoked."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Row, and_, bindparam, or_, select, update

from src.core.callers import AuthenticatedUser
from src.core.exceptions import SessionNotFoundError
from src.core.origin import RequestOrigin
from src.core.users import UserRecord
from src.db.base import utc_now
from src.db.models import SessionModel, UserModel
from src.db.repositories.base import BaseRepository, Condition
from src.db.repositories.users import RECORDS

# `user_id`, `idle_expires_at`, `expires_at`, `authenticated_at`, `second_factor_at`
RotatedSession = Row[UUID, datetime, datetime, datetime, datetime | None]


def _is_live(now: ColumnElement[datetime] | datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        SessionModel.revoked_at.is_(None),
        SessionModel.idle_expires_at > now,
        SessionModel.expires_at > now,
    )


_CALLER = (
    RECORDS.add_columns(SessionModel.authenticated_at, SessionModel.second_factor_at)
    .join(SessionModel, SessionModel.user_id == UserModel.id)
    .where(
        SessionModel.id == bindparam("session_id"),
        UserModel.id == bindparam("user_id"),
        UserModel.is_active,
        *_is_live(bindparam("now", type_=SessionModel.expires_at.type)),
    )
    .execution_options(is_plain=True)
)
_ROTATION = (
    update(SessionModel)
    .where(
        SessionModel.id == bindparam("session_id"),
        SessionModel.generation == bindparam("current"),
        *_is_live(bindparam("now", type_=SessionModel.expires_at.type)),
        select(UserModel.id).where(UserModel.id == SessionModel.user_id, UserModel.is_active).exists(),
    )
    .values(
        generation=SessionModel.generation + 1,
        last_used_at=bindparam("now", type_=SessionModel.last_used_at.type),
        idle_expires_at=bindparam("idle_until", type_=SessionModel.idle_expires_at.type),
    )
    .returning(
        SessionModel.user_id,
        SessionModel.idle_expires_at,
        SessionModel.expires_at,
        SessionModel.authenticated_at,
        SessionModel.second_factor_at,
    )
    .execution_options(is_plain=True, stands_alone=True, synchronize_session=False)
)


class SessionRepository(BaseRepository[SessionModel]):
    model = SessionModel
    not_found = SessionNotFoundError

    async def find_caller(self, user_id: UUID, session_id: UUID) -> AuthenticatedUser | None:
        """The user of a live session, in one indexed read; nobody, if either has ended or is disabled."""
        values = {"user_id": user_id, "session_id": session_id, "now": utc_now()}
        row = (await self._session.execute(_CALLER, values)).one_or_none()
        if row is None:
            return None
        *record, authenticated_at, second_factor_at = row
        return AuthenticatedUser(UserRecord(*record), session_id, authenticated_at, second_factor_at)

    async def rotate(self, session_id: UUID, generation: int, *, idle: timedelta) -> RotatedSession | None:
        """Move the session on from this generation, if it is the current one; of two who try at once, one does.

        It needs no `begin()`: the one statement is the whole transaction.
        """
        now = utc_now()
        values = {"session_id": session_id, "current": generation, "now": now, "idle_until": now + idle}
        return (await self._session.execute(_ROTATION, values)).one_or_none()

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

    async def list_recent_addresses(self, email: str, *, since: datetime) -> Sequence[str | None]:
        """Where the owner of an address had sessions, live or ended, that were used since then."""
        query = (
            select(SessionModel.client_address)
            .join(UserModel, UserModel.id == SessionModel.user_id)
            .where(UserModel.email == email, UserModel.activated_at.is_not(None), SessionModel.last_used_at > since)
            .distinct()
        )
        return (await self._session.scalars(query)).all()

    async def renew_proof(self, session_id: UUID, *, by_code: bool) -> bool:
        """Remember that its user has proved a password, or a code of the second factor, just now; false if it has
        ended."""
        now = utc_now()
        values = {"authenticated_at": now, **({"second_factor_at": now} if by_code else {})}
        statement = update(SessionModel).where(SessionModel.id == session_id, *_is_live(now)).values(**values)
        return await self._count_changed(statement) == 1

    async def list_origins(self, user_id: UUID, *, since: datetime) -> Sequence[RequestOrigin]:
        """Where the sessions of a user began that were used since then, live or ended."""
        query = (
            select(SessionModel.client_address, SessionModel.user_agent)
            .where(SessionModel.user_id == user_id, SessionModel.last_used_at > since)
            .distinct()
        )
        return [RequestOrigin(*row) for row in await self._session.execute(query)]

    async def revoke(self, session_id: UUID, *, user_id: UUID | None = None) -> bool:
        """End a session (of this user, if one is named); false if it had ended, or is not theirs."""
        owned = () if user_id is None else (SessionModel.user_id == user_id,)
        return await self._revoke(SessionModel.id == session_id, *_is_live(utc_now()), *owned) == 1

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

    def ended(self, *, unused_since: datetime) -> Condition:
        """Sessions that can never be used again, and were not used since then."""
        now = utc_now()
        has_ended = or_(
            SessionModel.revoked_at.is_not(None), SessionModel.idle_expires_at <= now, SessionModel.expires_at <= now
        )
        return and_(has_ended, SessionModel.last_used_at <= unused_since)

    async def purge(self, ids: Sequence[UUID], condition: Condition) -> int:
        """As of every table; also those are left whose user is locked. Users come first, as everywhere: a session that
        goes is taken out of the tokens of its user, who may have locked them and come for the session next."""
        whose = select(SessionModel.user_id).where(SessionModel.id.in_(ids))
        users = select(UserModel.id).where(UserModel.id.in_(whose)).with_for_update(skip_locked=True, key_share=True)
        locked = (await self._session.scalars(users)).all()
        return await super().purge(ids, and_(condition, SessionModel.user_id.in_(locked)))

    async def _revoke(self, *conditions: ColumnElement[bool]) -> int:
        statement = update(SessionModel).where(SessionModel.revoked_at.is_(None), *conditions)
        return await self._count_changed(statement.values(revoked_at=utc_now()))
