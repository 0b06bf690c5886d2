"""Rows as they would have come about, without the way to them."""

from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import update

from src.core.passwords import UNUSABLE_PASSWORD
from src.core.users import UserRecord
from src.db import AsyncDatabaseManager
from src.db.base import smallest_id, utc_now
from src.db.models import SessionModel, UserModel, UserTokenModel
from tests.support.databases import add_rows, execute
from tests.support.keys import sign_access
from tests.support.service import Service
from tests.support.steps import LoggedIn

DAY = timedelta(days=1)


def id_of(moment: datetime) -> UUID:
    """An id as a row of this moment got it."""
    return UUID(int=smallest_id(moment).int | uuid4().int & (1 << 76) - 1 | 7 << 76)


def make_user(email: str | None = "ana@example.com", **values: Any) -> UserModel:
    return UserModel(**({"email": email, "name": "Ana", "hashed_password": "<bcrypt-hash>"} | values))


def make_session(user: UserModel, *, expires_in: timedelta = DAY) -> SessionModel:
    expires_at = utc_now() + expires_in
    return SessionModel(user_id=user.id, idle_expires_at=expires_at, expires_at=expires_at)


async def add_users(database: AsyncDatabaseManager, *people: dict[str, Any]) -> list[str]:
    """Insert accounts that nobody can log in to, where the values do not say otherwise; their ids."""
    users = [UserModel(**({"hashed_password": UNUSABLE_PASSWORD} | each)) for each in people]
    await add_rows(database, *users)
    return [str(user.id) for user in users]


async def add_logged_in(service: Service, email: str, **values: Any) -> LoggedIn:
    """Insert an account and a session of it, without the log-in."""
    user = UserModel(**({"email": email, "hashed_password": UNUSABLE_PASSWORD} | values))
    async with service.database.session() as session:
        session.add(user)
        await session.flush()
        row = make_session(user)
        session.add(row)
        await session.commit()
    signer = service.signer
    return LoggedIn(sign_access(signer, user.id, row.id), signer.sign_refresh(row.id, generation=1), str(user.id))


async def expire_links(database: AsyncDatabaseManager) -> None:
    await execute(database, update(UserTokenModel).values(expires_at=utc_now() - timedelta(seconds=1)))


async def age_users(database: AsyncDatabaseManager, **age: int) -> None:
    """Let all users have come so long ago: `await age_users(database, hours=49)`."""
    await execute(database, update(UserModel).values(created_at=utc_now() - timedelta(**age)))


def make_record(**values: Any) -> UserRecord:
    """A user as services see one; what is not given is null."""
    all_values: dict[str, Any] = dict.fromkeys(field.name for field in fields(UserRecord)) | values
    return UserRecord(**all_values)
