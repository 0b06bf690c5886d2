"""What administrators, other services and the command line do about users; and what a user may change of themselves."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypedDict
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.callers import Caller, Principal, Scope, ServiceClient, may, require
from src.core.exceptions import (
    FieldsForbiddenError,
    ForbiddenException,
    InvalidAccessTokenError,
    LastAdminError,
    MailNotConfiguredError,
    PreconditionFailedException,
    UserDisabledError,
    UserEmailTakenError,
    UserPendingError,
)
from src.core.passwords import UNUSABLE_PASSWORD
from src.core.settings import Settings
from src.db.database import begin_writing
from src.db.models import EventKind, TokenPurpose, UserModel
from src.db.repositories import (
    OutboxRepository,
    ServiceClientRepository,
    SessionRepository,
    UserRecord,
    UserRepository,
    UserTokenRepository,
)
from src.email import MessageKind
from src.services.audit import Audit
from src.services.outbox import LINK_KINDS, Outbox

_OWNERS_FIELDS = {"name"}


class UserChanges(TypedDict, total=False):
    """What is to change; what is left out stays."""

    name: str | None
    is_active: bool
    is_admin: bool


@dataclass(frozen=True, slots=True)
class Invitation:
    user_id: UUID
    invitation_url: str | None  # None when it is mailed


def version_of(values: Sequence[object]) -> str:
    """Changes whenever one of these values does."""
    return hashlib.sha256(repr(tuple(values)).encode()).hexdigest()[:32]


class UserService:
    """Callers need `users:write`, as every administrator has it, or raise `ForbiddenException`; both are looked at
    again under lock, so that a demotion holds from the moment of its commit.

    A service may not touch an administrator, nor make one: it would be worth more than its scope. Each method raises
    `UserNotFoundError` where there is no such user. `outbox` takes the mails; without one, invitations are in the
    answers. `if_match` holds the versions (`version_of` the record) in one of which the user must be, or
    `PreconditionFailedException` is raised.
    """

    def __init__(self, session: AsyncSession, *, settings: Settings, outbox: Outbox | None, audit: Audit) -> None:
        self._session = session
        self._users = UserRepository(session)
        self._tokens = UserTokenRepository(session)
        self._sessions = SessionRepository(session)
        self._mails = OutboxRepository(session)
        self._settings = settings
        self._outbox = outbox
        self._audit = audit

    async def invite(self, caller: Caller, *, email: str, name: str | None, is_admin: bool) -> Invitation:
        """Mail somebody a link by which they choose a password. A new invitation takes the place of an older one.

        Raises `UserEmailTakenError` if the address has an account.
        """
        async with self._audit.act(EventKind.INVITATION, by=caller) as act:
            act.changes = "is_admin=true" if is_admin else None
            require(caller, Scope.USERS_WRITE)
            if is_admin and isinstance(caller, ServiceClient):
                raise FieldsForbiddenError.for_fields(["is_admin"], "only an administrator may set this")
            await begin_writing(self._session)
            await self._users.lock_invitation(email)
            await self._users.lock_address(email, and_user=_id_of(caller))
            await self._claim(caller)
            if owner := await self._users.find_owner(email):
                act.user_id = owner.id
                raise UserEmailTakenError
            user = await self._place_invitation(caller, email, name=name, is_admin=is_admin)
            act.user_id = user.id
            url = await self._send_invitation(user)
            await self._audit.succeeded(act)
            await self._session.commit()
            return Invitation(user.id, url)

    async def update(
        self, caller: Caller, user_id: UUID, changes: UserChanges, *, if_match: Collection[str] | None = None
    ) -> UserRecord:
        """Change a user. People may change their own name. Disabling ends every session and link at once.

        Raises `FieldsForbiddenError` for what the caller may not change, `LastAdminError` if no active administrator
        would remain, and `UserPendingError` where the address is not confirmed. Of these changes, all hold or none.
        """
        async with self._audit.act(EventKind.USER_UPDATE, by=caller, user_id=user_id) as act:
            act.changes = _describe(changes)
            _require_fields(caller, user_id, changes)
            concerns_admins = bool(changes.keys() - _OWNERS_FIELDS)
            user = await self._begin(caller, user_id, lock_admins=concerns_admins, if_match=if_match)
            if user.activated_at is None:
                raise UserPendingError
            if not (changes.get("is_active", True) and changes.get("is_admin", True)):
                await step_down(self._session, user)
            if changes:
                await self._users.update(user_id, changes)
            if changes.get("is_active") is False:
                await self._end_everything(user_id)
            record = await self._users.get_record(user_id)
            await self._audit.succeeded(act)
            await self._session.commit()
            return record

    async def delete(self, caller: Caller, user_id: UUID, *, if_match: Collection[str] | None = None) -> None:
        """Remove a user and all that hangs on them; their owner is told. The address is free again.

        Raises `LastAdminError` if no active administrator would remain.
        """
        async with self._audit.act(EventKind.USER_DELETION, by=caller, user_id=user_id) as act:
            require(caller, Scope.USERS_WRITE)
            user = await self._begin(caller, user_id, lock_admins=True, if_match=if_match)
            await step_down(self._session, user)
            await self._audit.succeeded(act)
            if user.activated_at is None:
                await self._users.delete(user)
            else:
                await erase_account(self._session, user)
                if self._outbox:
                    await self._outbox.queue(MessageKind.ACCOUNT_REMOVED, to=user.email, user_id=None, where=None)
            await self._session.commit()

    async def send_password_reset(self, caller: Caller, user_id: UUID) -> None:
        """Mail the user a link that sets a new password. Nobody else sees it.

        Raises `UserPendingError`, `UserDisabledError`, and `MailNotConfiguredError` where nothing carries mail.
        """
        async with self._audit.act(EventKind.PASSWORD_RESET_REQUEST, by=caller, user_id=user_id) as act:
            require(caller, Scope.USERS_WRITE)
            if self._outbox is None:
                raise MailNotConfiguredError
            user = await self._begin(caller, user_id)
            if user.activated_at is None:
                raise UserPendingError
            if not user.is_active:
                raise UserDisabledError
            await self._outbox.queue(MessageKind.PASSWORD_RESET, to=user.email, user_id=user.id, where=None)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def revoke_sessions(self, caller: Caller, user_id: UUID) -> None:
        """Log a user out everywhere."""
        async with self._audit.act(EventKind.SESSION_REVOCATION, by=caller, user_id=user_id) as act:
            require(caller, Scope.USERS_WRITE)
            await self._begin(caller, user_id)
            await self._sessions.revoke_all(user_id)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def _begin(
        self,
        caller: Caller,
        user_id: UUID,
        *,
        lock_admins: bool = False,
        if_match: Collection[str] | None = None,
    ) -> UserModel:
        """Open the transaction, lock the user and the caller, and look again at what the caller is."""
        await begin_writing(self._session)
        await self._users.lock_users(user_id, _id_of(caller), and_admins=lock_admins)
        await self._claim(caller)
        user = await self._users.get_by_id(user_id)
        _require_rank(caller, user)
        if if_match is not None and version_of(await self._users.get_record(user_id)) not in if_match:
            raise PreconditionFailedException
        return user

    async def _claim(self, caller: Caller) -> None:
        """Raises if what authorised the caller has ended meanwhile."""
        if isinstance(caller, Principal):
            now = await self._sessions.find_principal(caller.user_id, caller.session_id)
            if now is None:
                raise InvalidAccessTokenError
            if caller.is_admin and not now.is_admin:
                raise ForbiddenException
        if isinstance(caller, ServiceClient) and not await ServiceClientRepository(self._session).is_live(
            caller.client_id, lock=True
        ):
            raise InvalidAccessTokenError

    async def _end_everything(self, user_id: UUID) -> None:
        await self._tokens.end_all(user_id)
        await self._mails.end_links(user_id, LINK_KINDS)
        await self._sessions.revoke_all(user_id)

    async def _place_invitation(self, caller: Caller, email: str, *, name: str | None, is_admin: bool) -> UserModel:
        """The one row of the address that is invited, new or anew."""
        user = await self._users.find_invitation(email)
        if user:
            _require_rank(caller, user)
            await self._tokens.end_all(user.id)
            await self._users.update(user.id, {"name": name, "is_admin": is_admin})
            return user
        return await self._users.add(
            UserModel(
                email=email,
                name=name,
                hashed_password=UNUSABLE_PASSWORD,
                is_admin=is_admin,
                is_active=False,
                activated_at=None,
            )
        )

    async def _send_invitation(self, user: UserModel) -> str | None:
        """The link, where the answer travels in the response."""
        settings = self._settings
        if self._outbox and not settings.auth_return_token_in_response:
            await self._outbox.queue(MessageKind.INVITATION, to=user.email, user_id=user.id, where=None, name=user.name)
            return None
        lifetime = timedelta(seconds=settings.auth_invitation_ttl_seconds)
        token = await self._tokens.issue(user.id, TokenPurpose.INVITATION, lifetime)
        return settings.link(settings.auth_invitation_url_template, token)


async def step_down(session: AsyncSession, user: UserModel) -> None:
    """Prepare that an active administrator, locked with all others, stops to be one. Invitations of administrators that
    wait become ordinary ones: they may be theirs, and would outlive their rights. A step of a use case: it does not
    commit.

    Raises `LastAdminError` if nobody else is one. For anyone else it does nothing.
    """
    if not (user.is_admin and user.is_active and user.activated_at):
        return
    users = UserRepository(session)
    if not await users.has_other_admin(user.id):
        raise LastAdminError
    await users.demote_invited()


async def erase_account(session: AsyncSession, user: UserModel) -> None:
    """Delete an account, locked, and all that hangs on it; of the mails to its owner, only the notices stay until they
    are sent. A step of a use case: it does not commit."""
    users, mails = UserRepository(session), OutboxRepository(session)
    await mails.forget_address(user.email)
    await mails.outlive(user.id, [MessageKind.EMAIL_CHANGED])
    await users.delete_pending(user.email)
    await users.delete(user)


def _id_of(caller: Caller) -> UUID | None:
    return caller.user_id if isinstance(caller, Principal) else None


def _require_rank(caller: Caller, user: UserModel) -> None:
    if user.is_admin and isinstance(caller, ServiceClient):
        raise ForbiddenException("A service may not change an administrator.")


def _require_fields(caller: Caller, user_id: UUID, changes: UserChanges) -> None:
    is_owner = isinstance(caller, Principal) and caller.user_id == user_id
    forbidden = changes.keys() - _OWNERS_FIELDS
    if is_owner and forbidden and not may(caller, Scope.USERS_WRITE):
        raise FieldsForbiddenError.for_fields(forbidden, "only an administrator may change this")
    if not is_owner:
        require(caller, Scope.USERS_WRITE)
    if isinstance(caller, ServiceClient) and "is_admin" in changes:
        raise FieldsForbiddenError.for_fields(["is_admin"], "only an administrator may change this")


def _describe(changes: UserChanges) -> str | None:
    """What the event tells: which rights are given or taken, and that the name changes, but not to what."""
    rights = [f"{field}={str(value).lower()}" for field, value in changes.items() if field not in _OWNERS_FIELDS]
    return " ".join([field for field in changes if field in _OWNERS_FIELDS] + rights) or None
