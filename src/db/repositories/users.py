"""Accounts, and the sign-ups that wait to become one."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from sqlalchemy import Row, bindparam, delete, exists, select, update

from src.core.addresses import normalize_email
from src.core.exceptions import AppException, UserEmailTakenError, UserNotFoundError
from src.db.base import utc_now
from src.db.models import TokenPurpose, UserModel, UserTokenModel
from src.db.repositories.base import BaseRepository

_PUBLIC_PROFILE = select(UserModel.id, UserModel.name, UserModel.is_active, UserModel.created_at).where(
    UserModel.id == bindparam("user_id")
)


class UserRepository(BaseRepository[UserModel]):
    model = UserModel
    not_found = UserNotFoundError
    conflicts: ClassVar[Mapping[str, type[AppException]]] = {
        "uq_users_email_activated": UserEmailTakenError,
        "users.email": UserEmailTakenError,
    }

    async def get_public_profile(self, user_id: UUID) -> Row[UUID, str | None, bool, datetime]:
        """What anyone may see of a user. Raises `UserNotFoundError`."""
        row = (await self._session.execute(_PUBLIC_PROFILE, {"user_id": user_id})).one_or_none()
        if row is None:
            raise UserNotFoundError
        return row

    async def find_owner(self, email: str) -> UserModel | None:
        """The one activated row of an address, disabled or not. Flows look up by address in no other way."""
        query = select(UserModel).where(UserModel.email == normalize_email(email), UserModel.activated_at.is_not(None))
        return (await self._session.scalars(query)).one_or_none()

    async def lock_address(self, email: str) -> None:
        """Lock the rows of an address, in the order of their ids, before its tokens and sessions: flows that take
        locks in one order cannot wait for each other in a circle. (SQLite has one writer, who waits for nobody.)"""
        await self._session.execute(
            select(UserModel.id).where(UserModel.email == email).order_by(UserModel.id).with_for_update()
        )

    async def list_live_sign_ups(self, email: str, *, limit: int) -> Sequence[UserModel]:
        """The newest sign-ups of an address that a link can still activate."""
        has_link = exists().where(
            UserTokenModel.user_id == UserModel.id,
            UserTokenModel.purpose == TokenPurpose.ACTIVATION,
            UserTokenModel.expires_at > utc_now(),
        )
        query = (
            select(UserModel)
            .where(UserModel.email == email, UserModel.activated_at.is_(None), has_link)
            .order_by(UserModel.id.desc())
            .limit(limit)
        )
        return (await self._session.scalars(query)).all()

    async def activate(self, user_id: UUID) -> bool:
        """Make a pending row the owner of its address; false if it is not pending any more.

        Raises `UserEmailTakenError` if another row owns the address.
        """
        statement = (
            update(UserModel)
            .where(UserModel.id == user_id, UserModel.activated_at.is_(None))
            .values(activated_at=utc_now(), is_active=True, signed_up_from=None)
            .returning(UserModel.id)
        )
        with self._conflicts_named():
            return (await self._session.scalars(statement)).one_or_none() is not None

    async def delete_pending(self, email: str) -> None:
        """Delete the sign-ups of an address that still wait, with their tokens."""
        await self._session.execute(delete(UserModel).where(UserModel.email == email, UserModel.activated_at.is_(None)))
