"""Accounts, and the sign-ups that wait to become one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import itemgetter
from typing import ClassVar, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_, bindparam, delete, exists, func, not_, or_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from uuid_utils.compat import uuid7

from src.core.addresses import normalize_email
from src.core.exceptions import AppException, UserEmailTakenError, UserNotFoundError
from src.core.kinds import EmailKind, TokenPurpose
from src.core.passwords import UNUSABLE_PASSWORD
from src.core.users import UserRecord
from src.db.base import utc_now
from src.db.database import LONG_SEARCH
from src.db.models import OutboxEmailModel, OutboxStatus, SessionModel, UserModel, UserTokenModel
from src.db.repositories.base import BaseRepository, Condition

RECORDS = select(*(getattr(UserModel, column.name) for column in fields(UserRecord))).execution_options(is_plain=True)
_RECORD = RECORDS.where(UserModel.id == bindparam("user_id"))

Order = Literal["newest", "oldest"]


@dataclass(frozen=True, slots=True)
class UserFilter:
    """All that is given must hold. Sign-ups and invitations that wait are asked for apart from accounts."""

    email: str | None = None
    name: str | None = None  # a part of it, in any case
    is_active: bool | None = None
    is_admin: bool | None = None
    pending: bool = False


class UserRepository(BaseRepository[UserModel]):
    model = UserModel
    not_found = UserNotFoundError
    conflicts: ClassVar[Mapping[str, type[AppException]]] = {
        "uq_users_email_activated": UserEmailTakenError,
        "UNIQUE constraint failed: users.email": UserEmailTakenError,
    }

    async def get_record(self, user_id: UUID) -> UserRecord:
        """Every column of a user that anybody may ever see. Raises `UserNotFoundError`."""
        record = await self.find_record(user_id)
        if record is None:
            raise UserNotFoundError
        return record

    async def find_record(self, user_id: UUID) -> UserRecord | None:
        row = (await self._session.execute(_RECORD, {"user_id": user_id})).one_or_none()
        return None if row is None else UserRecord(*row)

    async def list_records(
        self, filters: UserFilter, *, order: Order, limit: int, after: UUID | None
    ) -> Sequence[UserRecord]:
        """In the order of ids, and so of age, from behind the id `after`. However far behind, it costs the same."""
        query = RECORDS.where(*_matches(filters)).limit(limit)
        if filters.name is not None:
            query = query.execution_options(**LONG_SEARCH)
        if order == "oldest":
            query = query.order_by(UserModel.id).where(UserModel.id > after if after else true())
        else:
            query = query.order_by(UserModel.id.desc()).where(UserModel.id < after if after else true())
        return [UserRecord(*row) for row in await self._session.execute(query)]

    async def count_records(self, filters: UserFilter) -> int:
        """Reads every row that matches."""
        query = select(func.count()).select_from(UserModel).where(*_matches(filters)).execution_options(**LONG_SEARCH)
        return (await self._session.scalars(query)).one()

    async def find_owner(self, email: str) -> UserModel | None:
        """The one activated row of an address, disabled or not. Use cases look up by address in no other way."""
        query = select(UserModel).where(UserModel.email == normalize_email(email), UserModel.activated_at.is_not(None))
        return (await self._session.scalars(query)).one_or_none()

    async def find_owned(self, emails: Collection[str]) -> Sequence[str]:
        """Which of these addresses have an account."""
        query = select(UserModel.email).where(UserModel.email.in_(emails), UserModel.activated_at.is_not(None))
        return (await self._session.scalars(query)).all()

    async def find_hashed_password(self, user_id: UUID) -> str | None:
        return await self._session.scalar(select(UserModel.hashed_password).where(UserModel.id == user_id))

    async def lock_addresses(self, *emails: str, and_user: UUID | None = None, and_admins: bool = False) -> None:
        """Lock the rows of these addresses (and one more, and all administrators, those who are only invited too: see
        `demote_invited`) in the order of their ids, before tokens and sessions: this lock order prevents deadlocks.

        Rows that refer to these may be inserted meanwhile: an email about somebody else's account waits for nobody.
        (SQLite has one writer at a time.)
        """
        await self._lock(UserModel.email.in_(emails), UserModel.id == and_user, and_admins=and_admins)

    async def lock_owner(self, email: str, *, and_user: UUID | None = None) -> None:
        """Lock the account of an address (and one more row), but not the sign-ups that wait: they may be thousands."""
        owner = and_(UserModel.email == email, UserModel.activated_at.is_not(None))
        await self._lock(owner, UserModel.id == and_user, and_admins=False)

    async def lock_invitation(self, email: str) -> None:
        """Until the transaction ends, nobody else invites this address: two who invite somebody new at once have no row
        to wait for. It comes before any row, so that who waits for it holds nothing. (SQLite has one writer.)"""
        if not self._is_sqlite:
            await self._session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(email, 1))))

    async def lock_users(self, *user_ids: UUID | None, and_admins: bool = False) -> None:
        """Lock these (and all administrators), as `lock_addresses` does."""
        await self._lock(UserModel.id.in_([id_ for id_ in user_ids if id_]), and_admins=and_admins)

    async def has_other_admin(self, user_id: UUID) -> bool:
        """Whether somebody else is an active administrator. It stays true only while their rows are locked: two who
        demote each other at once would otherwise both count the other."""
        query = select(exists().where(_is_active_admin(), UserModel.id != user_id).select_from(UserModel))
        return (await self._session.scalars(query)).one()

    async def lock_account(self, user_id: UUID, *, hashed_password: str, session_id: UUID) -> bool:
        """Lock an account and claim again what a caller proved before: this password, in this session.

        False if either has ended meanwhile, or the account is disabled or gone.
        """
        statement = (
            select(UserModel.id)
            .join(SessionModel, SessionModel.user_id == UserModel.id)
            .where(
                UserModel.id == user_id,
                UserModel.hashed_password == hashed_password,
                UserModel.is_active,
                SessionModel.id == session_id,
                SessionModel.revoked_at.is_(None),
            )
            .with_for_update(of=UserModel, key_share=True)
        )
        return await self._session.scalar(statement) is not None

    async def record_login(self, user_id: UUID, *, seen_hash: str, new_hash: str) -> bool:
        """Record a log-in whose password was verified against `seen_hash`, and upgrade that hash. Neither is a change
        of the user, so `updated_at` stays.

        False if the password has changed, or the account has been disabled or deleted, while it was verified.
        """
        statement = (
            update(UserModel)
            .where(UserModel.id == user_id, UserModel.hashed_password == seen_hash, UserModel.is_active)
            .values(last_login_at=utc_now(), hashed_password=new_hash, updated_at=UserModel.updated_at)
        )
        return await self._count_changed(statement) == 1

    async def set_password(self, user_id: UUID, hashed_password: str) -> bool:
        """False if the account is disabled or gone."""
        return await self._update_active(user_id, hashed_password=hashed_password)

    async def set_email(self, user_id: UUID, email: str) -> bool:
        """False if the account is disabled or gone. Raises `UserEmailTakenError` if another owns the address."""
        with self._conflicts_named():
            return await self._update_active(user_id, email=email)

    async def update(self, user_id: UUID, values: Mapping[str, object]) -> None:
        await self._session.execute(update(UserModel).where(UserModel.id == user_id).values(**values))

    async def find_invitation(self, email: str) -> UserModel | None:
        """The invited row of an address that nobody has accepted yet."""
        query = select(UserModel).where(
            UserModel.email == email,
            UserModel.activated_at.is_(None),
            UserModel.hashed_password == UNUSABLE_PASSWORD,
        )
        return (await self._session.scalars(query)).one_or_none()

    async def demote_invited(self) -> Sequence[UUID]:
        """Let no invitation that waits make an administrator: whoever sent it may have lost that right themselves. The
        ids of those that would have. Their rows are locked with the administrators', or this could end in a deadlock
        with whoever sends one again."""
        statement = (
            update(UserModel)
            .where(UserModel.activated_at.is_(None), UserModel.is_admin)
            .values(is_admin=False)
            .returning(UserModel.id)
        )
        return (await self._session.scalars(statement)).all()

    async def add_unless_owned(self, accounts: Sequence[Mapping[str, object]]) -> Mapping[str, UUID]:
        """Insert accounts, but for those whose address is owned by now; the ids of those inserted, by their addresses.

        In the order of their addresses, or two who insert the same at once could end in a deadlock.
        """
        insert = sqlite.insert if self._is_sqlite else postgresql.insert
        statement = (
            insert(UserModel)
            .on_conflict_do_nothing(index_elements=["email"], index_where=UserModel.activated_at.is_not(None))
            .returning(UserModel.email, UserModel.id)
        )
        rows = [{"id": uuid7(), "activated_at": utc_now(), **account} for account in accounts]
        if not rows:
            return {}
        added = await self._session.execute(statement, sorted(rows, key=itemgetter("email")))
        return dict(added.all())

    async def list_sign_ups(self, email: str, *, created_after: datetime, limit: int) -> Sequence[UserModel]:
        """The newest sign-ups of an address, locked.

        One that somebody else has locked is left out: a sign-up that came after `lock_addresses` may be activated or
        deleted at this moment.
        """
        query = (
            select(UserModel)
            .where(UserModel.email == email, _is_sign_up(), UserModel.created_at > created_after)
            .order_by(UserModel.id.desc())
            .limit(limit)
            .with_for_update(skip_locked=True, key_share=True)
        )
        return (await self._session.scalars(query)).all()

    async def has_other_sign_up(self, sign_up: UserModel, *, created_after: datetime) -> bool:
        """Whether another sign-up waits for the address. One that begins after `lock_addresses` may be missed."""
        query = select(
            exists()
            .where(
                UserModel.email == sign_up.email,
                UserModel.id != sign_up.id,
                _is_sign_up(),
                UserModel.created_at > created_after,
            )
            .select_from(UserModel)
        )
        return (await self._session.scalars(query)).one()

    async def activate(self, user_id: UUID, *, hashed_password: str | None = None) -> bool:
        """Make a pending row the owner of its address, with this password if one is given; false if it is not pending
        any more.

        Raises `UserEmailTakenError` if another row owns the address.
        """
        password = {} if hashed_password is None else {"hashed_password": hashed_password}
        statement = (
            update(UserModel)
            .where(UserModel.id == user_id, UserModel.activated_at.is_(None))
            .values(activated_at=utc_now(), is_active=True, signed_up_from=None, **password)
        )
        with self._conflicts_named():
            return await self._count_changed(statement) == 1

    async def delete_pending(self, *emails: str) -> None:
        """Delete the sign-ups and invitations of these addresses that still wait, with their tokens."""
        await self._count_changed(
            delete(UserModel).where(UserModel.email.in_(emails), UserModel.activated_at.is_(None))
        )

    def abandoned(self, created_before: datetime) -> Condition:
        """Sign-ups of before then, and invitations whose last link has expired."""
        return and_(
            UserModel.activated_at.is_(None),
            UserModel.created_at < created_before,
            or_(_is_sign_up(), ~_awaits_acceptance()),
        )

    async def _update_active(self, user_id: UUID, **values: object) -> bool:
        statement = update(UserModel).where(UserModel.id == user_id, UserModel.is_active).values(**values)
        return await self._count_changed(statement) == 1

    async def _lock(self, *conditions: ColumnElement[bool], and_admins: bool) -> None:
        if self._is_sqlite:
            return
        admins = (UserModel.is_admin,) if and_admins else ()
        await self._session.execute(
            select(UserModel.id).where(or_(*conditions, *admins)).order_by(UserModel.id).with_for_update(key_share=True)
        )


def _is_active_admin() -> ColumnElement[bool]:
    return and_(UserModel.is_admin, UserModel.is_active, UserModel.activated_at.is_not(None))


def _matches(filters: UserFilter) -> Sequence[ColumnElement[bool]]:
    """Truth values are written out, since a partial index is of no use for what comes as a parameter."""
    conditions: list[ColumnElement[bool]] = []
    conditions.append(UserModel.activated_at.is_(None) if filters.pending else UserModel.activated_at.is_not(None))
    if filters.email is not None:
        conditions.append(UserModel.email == filters.email)
    if filters.name is not None:
        conditions.append(UserModel.name.icontains(filters.name, autoescape=True))
    if filters.is_active is not None:
        conditions.append(and_(UserModel.is_active) if filters.is_active else not_(UserModel.is_active))
    if filters.is_admin is not None:
        conditions.append(and_(UserModel.is_admin) if filters.is_admin else not_(UserModel.is_admin))
    return conditions


def _is_sign_up() -> ColumnElement[bool]:
    """A sign-up brings a password; an invitation has none before it is accepted."""
    return and_(UserModel.activated_at.is_(None), UserModel.hashed_password != UNUSABLE_PASSWORD)


def _awaits_acceptance() -> ColumnElement[bool]:
    """Whether an invitation's link that works was sent, or an email that will bring one waits."""
    has_link = exists().where(
        UserTokenModel.user_id == UserModel.id,
        UserTokenModel.purpose == TokenPurpose.INVITATION,
        UserTokenModel.expires_at > utc_now(),
    )
    has_email = exists().where(
        OutboxEmailModel.user_id == UserModel.id,
        OutboxEmailModel.kind == EmailKind.INVITATION,
        OutboxEmailModel.status == OutboxStatus.QUEUED,
    )
    return or_(has_link, has_email)
