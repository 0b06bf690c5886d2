"""What administrators, other services and the command line do about users; and what a user may change of themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict
from uuid import UUID

from src.core.callers import AuthenticatedClient, AuthenticatedUser, Caller, Scope, may, require
from src.core.exceptions import (
    EmailNotConfiguredError,
    FieldsForbiddenError,
    ForbiddenException,
    InvalidAccessTokenError,
    PreconditionFailedException,
    SecondFactorNotSetError,
    UserDisabledError,
    UserEmailTakenError,
    UserPendingError,
)
from src.core.kinds import EmailKind
from src.core.passwords import UNUSABLE_PASSWORD
from src.core.users import UserRecord
from src.db.models import EventKind, UserModel
from src.services.account_steps import demote_invited, erase_account, require_another_admin, revoke_credentials
from src.services.context import Service
from src.services.outbox import issue_link
from src.services.proofs import require_fresh_proof

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


Precondition = Callable[[UserRecord], bool]  # whether the user still is as the caller has read them


class UserService(Service):
    """Callers need `users:write`, as every administrator has it, or raise `ForbiddenException`; both are checked again
    under lock, so that a demotion holds from the moment of its commit.

    A service may not touch an administrator, nor make one: it would be worth more than its scope. What gives or takes
    rights, disables, deletes or resets a factor needs a recent proof of an administrator, else
    `ReauthenticationRequiredError`. Each method raises `UserNotFoundError` where there is no such user, and
    `PreconditionFailedException` where `precondition` is not met.
    """

    async def invite(self, caller: Caller, *, email: str, name: str | None, is_admin: bool) -> Invitation:
        """Email somebody a link by which they choose a password. A new invitation takes the place of an older one.

        Raises `UserEmailTakenError` if the address has an account.
        """
        async with self.context.recording(EventKind.INVITATION, by=caller) as event:
            event.changes = "is_admin=true" if is_admin else None
            require(caller, Scope.USERS_WRITE)
            if is_admin and isinstance(caller, AuthenticatedClient):
                raise FieldsForbiddenError.for_fields(["is_admin"], "only an administrator may set this")
            if is_admin:
                require_fresh_proof(self.context, caller)
            self._check_address(email)
            await self.context.limits.take_email(EventKind.INVITATION, email, is_anonymous=False)
            await self.uow.begin()
            await self.uow.users.lock_invitation(email)
            await self.uow.users.lock_addresses(email, and_user=_id_of(caller))
            await self._reauthorize(caller)
            if owner := await self.uow.users.find_owner(email):
                event.user_id = owner.id
                raise UserEmailTakenError
            user = await self._add_invitation(caller, email, name=name, is_admin=is_admin)
            event.user_id = user.id
            url = await self._send_invitation(user)
            await self.context.commit(event)
            return Invitation(user.id, url)

    async def update(
        self, caller: Caller, user_id: UUID, changes: UserChanges, *, precondition: Precondition | None = None
    ) -> UserRecord:
        """Change a user. People may change their own name. Disabling ends every session and link at once.

        Raises `FieldsForbiddenError` for what the caller may not change, `LastAdminError` if no active administrator
        would remain, and `UserPendingError` where the address is not confirmed. Of these changes, all hold or none.
        """
        async with self.context.recording(EventKind.USER_UPDATE, by=caller, user_id=user_id) as event:
            event.changes = _summary(changes)
            _require_fields(caller, user_id, changes)
            if "is_admin" in changes or changes.get("is_active") is False:
                require_fresh_proof(self.context, caller)
            concerns_admins = bool(changes.keys() - _OWNERS_FIELDS)
            user = await self._begin(caller, user_id, lock_admins=concerns_admins, precondition=precondition)
            if user.activated_at is None:
                raise UserPendingError
            if user.is_active_admin and not (changes.get("is_active", True) and changes.get("is_admin", True)):
                await require_another_admin(self.uow, user_id)
                await demote_invited(self.context, caller)
            if changes:
                await self.uow.users.update(user_id, changes)
            if changes.get("is_active") is False:
                await revoke_credentials(self.uow, user_id, keep_revert=False)
            record = await self.uow.users.get_record(user_id)
            await self.context.commit(event)
            return record

    async def delete(self, caller: Caller, user_id: UUID, *, precondition: Precondition | None = None) -> None:
        """Remove a user and all that belongs to them; their owner gets a notice. The address is free again.

        Raises `LastAdminError` if no active administrator would remain.
        """
        async with self.context.recording(EventKind.USER_DELETION, by=caller, user_id=user_id) as event:
            require(caller, Scope.USERS_WRITE)
            require_fresh_proof(self.context, caller)
            user = await self._begin(caller, user_id, lock_admins=True, precondition=precondition)
            if user.activated_at is None:
                await self.uow.users.delete(user)
            else:
                await erase_account(self.context, caller, user)
                await self.context.outbox.queue(EmailKind.ACCOUNT_REMOVED, to=user.email, user_id=None, where=None)
            await self.context.commit(event)

    async def send_password_reset(self, caller: Caller, user_id: UUID) -> None:
        """Email the user a link that sets a new password. Nobody else sees it.

        Raises `UserPendingError`, `UserDisabledError`, and `EmailNotConfiguredError` where there is no SMTP server.
        """
        async with self.context.recording(EventKind.PASSWORD_RESET_REQUEST, by=caller, user_id=user_id) as event:
            require(caller, Scope.USERS_WRITE)
            if not self.context.outbox.is_wired:
                raise EmailNotConfiguredError
            await self.context.limits.take_email(EventKind.PASSWORD_RESET_REQUEST, str(user_id), is_anonymous=False)
            user = await self._begin(caller, user_id)
            if user.activated_at is None:
                raise UserPendingError
            if not user.is_active:
                raise UserDisabledError
            await self.context.outbox.queue(
                EmailKind.PASSWORD_RESET, to=user.email, user_id=user.id, where=None, asked_by="administrator"
            )
            await self.context.commit(event)

    async def revoke_sessions(self, caller: Caller, user_id: UUID) -> None:
        """Log a user out everywhere."""
        async with self.context.recording(EventKind.SESSION_REVOCATION, by=caller, user_id=user_id) as event:
            require(caller, Scope.USERS_WRITE)
            await self._begin(caller, user_id)
            await self.uow.sessions.revoke_all(user_id)
            await self.context.commit(event)

    async def reset_second_factor(self, caller: Caller, user_id: UUID) -> None:
        """Remove the second factor of somebody who has lost it, and end their sessions; they get a notice. A service
        may not: it could take accounts over.

        Raises `SecondFactorNotSetError`.
        """
        async with self.context.recording(EventKind.SECOND_FACTOR_REMOVAL, by=caller, user_id=user_id) as event:
            require(caller, Scope.USERS_WRITE)
            if isinstance(caller, AuthenticatedClient):
                raise ForbiddenException("A service may not reset a second factor.")
            require_fresh_proof(self.context, caller, by_code=_id_of(caller) == user_id)
            user = await self._begin(caller, user_id)
            if not await self.uow.second_factors.remove(user_id):
                raise SecondFactorNotSetError
            await revoke_credentials(self.uow, user_id)
            await self.context.outbox.queue(
                EmailKind.SECOND_FACTOR_REMOVED, to=user.email, user_id=user_id, where=None, asked_by="administrator"
            )
            await self.context.commit(event)

    async def _begin(
        self,
        caller: Caller,
        user_id: UUID,
        *,
        lock_admins: bool = False,
        precondition: Precondition | None = None,
    ) -> UserModel:
        """Open the transaction, lock the user and the caller, and check again what the caller may."""
        await self.uow.begin()
        await self.uow.users.lock_users(user_id, _id_of(caller), and_admins=lock_admins)
        await self._reauthorize(caller)
        user = await self.uow.users.get_by_id(user_id)
        _require_rank(caller, user)
        if precondition and not precondition(await self.uow.users.get_record(user_id)):
            raise PreconditionFailedException
        return user

    async def _reauthorize(self, caller: Caller) -> None:
        """Raises if what authorised the caller has ended meanwhile."""
        if isinstance(caller, AuthenticatedUser):
            now = await self.uow.sessions.find_caller(caller.user_id, caller.session_id)
            if now is None:
                raise InvalidAccessTokenError
            if caller.is_admin and not now.is_admin:
                raise ForbiddenException
        if isinstance(caller, AuthenticatedClient) and not await self.uow.clients.is_live(caller.client_id, lock=True):
            raise InvalidAccessTokenError

    async def _add_invitation(self, caller: Caller, email: str, *, name: str | None, is_admin: bool) -> UserModel:
        """The one row of the address that is invited, new or anew."""
        user = await self.uow.users.find_invitation(email)
        if user:
            _require_rank(caller, user)
            if user.is_admin != is_admin:
                require_fresh_proof(self.context, caller)
            await revoke_credentials(self.uow, user.id)
            await self.uow.users.update(user.id, {"name": name, "is_admin": is_admin})
            return user
        return await self.uow.users.add(
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
        """The link, where it is in the response."""
        if self.context.link_in_response:
            return await issue_link(self.uow, self.settings, EmailKind.INVITATION, user.id)
        await self.context.outbox.queue(
            EmailKind.INVITATION, to=user.email, user_id=user.id, where=None, name=user.name
        )
        return None


def _id_of(caller: Caller) -> UUID | None:
    return caller.user_id if isinstance(caller, AuthenticatedUser) else None


def _require_rank(caller: Caller, user: UserModel) -> None:
    if user.is_admin and isinstance(caller, AuthenticatedClient):
        raise ForbiddenException("A service may not change an administrator.")


def _require_fields(caller: Caller, user_id: UUID, changes: UserChanges) -> None:
    is_owner = isinstance(caller, AuthenticatedUser) and caller.user_id == user_id
    forbidden = changes.keys() - _OWNERS_FIELDS
    if is_owner and forbidden and not may(caller, Scope.USERS_WRITE):
        raise FieldsForbiddenError.for_fields(forbidden, "only an administrator may change this")
    if not is_owner:
        require(caller, Scope.USERS_WRITE)
    if isinstance(caller, AuthenticatedClient) and "is_admin" in changes:
        raise FieldsForbiddenError.for_fields(["is_admin"], "only an administrator may change this")


def _summary(changes: UserChanges) -> str | None:
    """What the event says: which rights are given or taken, and that the name changes, but not to what."""
    rights = [f"{field}={str(value).lower()}" for field, value in changes.items() if field not in _OWNERS_FIELDS]
    return " ".join([field for field in changes if field in _OWNERS_FIELDS] + rights) or None
