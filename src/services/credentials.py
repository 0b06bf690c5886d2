"""What a person can do about their password, their address and their account: change, recover, leave."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.callers import Principal
from src.core.exceptions import (
    InvalidAccessTokenError,
    InvalidTokenError,
    UserDisabledError,
    UserEmailTakenError,
    UserNotFoundError,
    ValidationException,
    WrongPasswordError,
)
from src.core.passwords import PasswordHasher, check_password
from src.core.settings import Settings
from src.db.database import begin_writing
from src.db.models import EventKind, TokenPurpose, UserModel
from src.db.repositories import (
    EmailChange,
    OutboxRepository,
    SessionRepository,
    UserRepository,
    UserTokenRepository,
)
from src.email import MessageKind
from src.services.audit import Act, Audit
from src.services.outbox import LINK_KINDS, Outbox
from src.services.users import erase_account, step_down


class CredentialService:
    """Where a password is asked for, a wrong one raises `WrongPasswordError`, and a session or password that ended
    while it was verified raises `InvalidAccessTokenError`.

    `outbox` takes the mails. Links are in answers only by the explicit setting. `client_address` is where the request
    came from, which the notices to the owner tell.
    """

    def __init__(
        self,
        session: AsyncSession,
        *,
        settings: Settings,
        passwords: PasswordHasher,
        outbox: Outbox | None,
        client_address: str | None,
        audit: Audit,
    ) -> None:
        self._session = session
        self._users = UserRepository(session)
        self._tokens = UserTokenRepository(session)
        self._sessions = SessionRepository(session)
        self._settings = settings
        self._passwords = passwords
        self._outbox = outbox
        self._client_address = client_address
        self._mails = OutboxRepository(session)
        self._audit = audit

    async def change_password(self, caller: Principal, *, current_password: str, new_password: str) -> None:
        """Replace the password. Ends the caller's other sessions and every link that was mailed to them.

        Raises `ValidationException` for a weak password.
        """
        async with self._audit.act(EventKind.PASSWORD_CHANGE, by=caller, user_id=caller.user_id) as act:
            self._check_new_password(new_password, email=caller.email)
            seen_hash = await self._verify(caller, current_password)
            hashed_password = await self._passwords.hash(new_password)
            await begin_writing(self._session)
            await self._claim(caller, seen_hash)
            await self._users.set_password(caller.user_id, hashed_password)
            await self._end_links(caller.user_id)
            await self._sessions.revoke_all(caller.user_id, except_id=caller.session_id)
            await self._queue(MessageKind.PASSWORD_CHANGED, to=caller.email, user_id=caller.user_id)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def request_password_reset(self, email: str) -> str | None:
        """Mail a link to the owner of the address, if there is one. Returns it only by the explicit setting."""
        await begin_writing(self._session)
        await self._users.lock_address(email)
        owner = await self._users.find_owner(email)
        act = self._audit.describe(EventKind.PASSWORD_RESET_REQUEST, user_id=owner.id if owner else None)
        act.address = None if owner else email
        reason = None if owner and owner.is_active else (UserDisabledError if owner else UserNotFoundError).code
        if reason:
            owner = None
        # For an unknown address too, and dropped when it would be sent: the same statements take the same time. Asking
        # again while a mail waits does nothing, and leaves no event: many would pile up about somebody.
        if self._settings.auth_return_token_in_response or await self._queue(
            MessageKind.PASSWORD_RESET, to=owner.email if owner else email, user_id=owner.id if owner else None
        ):
            await (self._audit.failed(act, reason) if reason else self._audit.succeeded(act))
        if self._settings.auth_return_token_in_response:
            return await self._tell_reset_link(owner)
        await self._session.commit()
        return None

    async def preview_password_reset(self, token: str) -> str:
        """The address whose password the link would reset; changes nothing. Raises `InvalidTokenError`."""
        user = await self._tokens.find_user(token, TokenPurpose.PASSWORD_RESET)
        if user is None or not user.is_active:
            raise InvalidTokenError
        return user.email

    async def reset_password(self, *, token: str, new_password: str) -> None:
        """Set a new password by a mailed link. Ends every session and every other link; starts no session.

        Raises `InvalidTokenError`, and `ValidationException` for a weak password, which does not spend the link.
        """
        async with self._audit.act(EventKind.PASSWORD_RESET) as act:
            user = await self._tokens.find_user(token, TokenPurpose.PASSWORD_RESET)
            await self._session.close()
            if user is None:
                raise InvalidTokenError
            act.set_actor(user.id)
            self._check_new_password(new_password, email=user.email)
            hashed_password = await self._passwords.hash(new_password)
            await begin_writing(self._session)
            await self._users.lock_address(user.email)
            if not await self._tokens.spend(token, TokenPurpose.PASSWORD_RESET):
                raise InvalidTokenError
            if not await self._users.set_password(user.id, hashed_password):
                raise InvalidTokenError
            await self._end_links(user.id)
            await self._sessions.revoke_all(user.id)
            await self._queue(MessageKind.PASSWORD_CHANGED, to=user.email, user_id=user.id)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def request_email_change(self, caller: Principal, *, new_email: str, current_password: str) -> str | None:
        """Mail a link to the new address; returned only by the explicit setting. If the address has an owner, that
        owner is told, and nobody else.

        Raises `ValidationException` if the address is the caller's already.
        """
        async with self._audit.act(EventKind.EMAIL_CHANGE_REQUEST, by=caller, user_id=caller.user_id) as act:
            if new_email == caller.email:
                raise ValidationException.for_field("new_email", "is your address already")
            seen_hash = await self._verify(caller, current_password)
            await begin_writing(self._session)
            await self._claim(caller, seen_hash)
            owner = await self._users.find_owner(new_email)
            await self._audit.succeeded(act)
            if self._settings.auth_return_token_in_response:
                return await self._tell_change_link(caller, new_email, owner)
            if owner:
                await self._queue(MessageKind.ALREADY_REGISTERED, to=owner.email, user_id=owner.id)
            else:
                session_id = str(caller.session_id)
                await self._queue(MessageKind.EMAIL_CHANGE, to=new_email, user_id=caller.user_id, session_id=session_id)
            await self._session.commit()
            return None

    async def preview_email_change(self, token: str) -> str:
        """The address that the link would set; changes nothing. Raises `InvalidTokenError`."""
        return await self._preview(token, TokenPurpose.EMAIL_CHANGE)

    async def confirm_email_change(self, token: str) -> None:
        """Move the account to the address that was stored with the link. Sign-ups that wait for it end, and so do the
        account's sessions, but for the one that asked. The old address gets a link that undoes it.

        Raises `InvalidTokenError`, also when somebody owns the address by now.
        """
        async with self._audit.act(EventKind.EMAIL_CHANGE) as act:
            await begin_writing(self._session)
            old_email, change = await self._move(token, TokenPurpose.EMAIL_CHANGE, act)
            user_id = change.user_id
            await self._sessions.revoke_all(user_id, except_id=change.session_id)
            await self._queue(MessageKind.EMAIL_CHANGED, to=old_email, user_id=user_id, new_email=change.new_email)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def preview_email_revert(self, token: str) -> str:
        """The address that the link would put back; changes nothing. Raises `InvalidTokenError`."""
        return await self._preview(token, TokenPurpose.EMAIL_REVERT)

    async def revert_email_change(self, token: str) -> None:
        """Put the old address back, by the link that it was mailed, and end every session.

        Raises `InvalidTokenError`, also when somebody owns the address by now.
        """
        async with self._audit.act(EventKind.EMAIL_REVERT) as act:
            await begin_writing(self._session)
            _, change = await self._move(token, TokenPurpose.EMAIL_REVERT, act)
            # A notice of a later move would bring a link to whoever moved the account there.
            await self._mails.end_links(change.user_id, [MessageKind.EMAIL_CHANGED], queued_after=change.issued_at)
            await self._sessions.revoke_all(change.user_id)
            await self._audit.succeeded(act)
            await self._session.commit()

    async def delete_account(self, caller: Principal, *, current_password: str) -> None:
        """Delete the caller and everything about them, but for the notices until they are sent. The address is free.

        Raises `LastAdminError` if nobody else is an active administrator.
        """
        async with self._audit.act(EventKind.ACCOUNT_DELETION, by=caller, user_id=caller.user_id) as act:
            seen_hash = await self._verify(caller, current_password)
            await begin_writing(self._session)
            await self._users.lock_address(caller.email, and_user=caller.user_id, and_admins=True)
            await self._claim(caller, seen_hash)
            user = await self._users.get_by_id(caller.user_id)
            await step_down(self._session, user)
            await self._audit.succeeded(act)
            await erase_account(self._session, user)
            await self._queue(MessageKind.ACCOUNT_DELETED, to=user.email, user_id=None)
            await self._session.commit()

    def _check_new_password(self, password: str, *, email: str) -> None:
        min_length = self._settings.auth_password_min_length
        check_password(password, email=email, min_length=min_length, field="new_password")

    async def _verify(self, caller: Principal, password: str) -> str:
        """The hash that the password has been verified against, with no connection held meanwhile."""
        seen_hash = await self._users.find_hashed_password(caller.user_id)
        await self._session.close()
        if not await self._passwords.verify(password, seen_hash) or seen_hash is None:
            raise WrongPasswordError
        return seen_hash

    async def _claim(self, caller: Principal, seen_hash: str) -> None:
        if not await self._users.lock_account(caller.user_id, hashed_password=seen_hash, session_id=caller.session_id):
            raise InvalidAccessTokenError

    async def _end_links(self, user_id: UUID) -> None:
        await self._tokens.end_all(user_id)
        await self._mails.end_links(user_id, LINK_KINDS)

    async def _queue(self, kind: MessageKind, *, to: str, user_id: UUID | None, **content: str | None) -> bool:
        """False if a mail that waits will do."""
        if self._outbox is None:
            return True
        return await self._outbox.queue(kind, to=to, user_id=user_id, where=self._client_address, **content)

    async def _tell_reset_link(self, owner: UserModel | None) -> str | None:
        lifetime = timedelta(seconds=self._settings.auth_password_reset_ttl_seconds)
        url = None
        if owner:
            token = await self._tokens.issue(owner.id, TokenPurpose.PASSWORD_RESET, lifetime)
            url = self._settings.link(self._settings.auth_password_reset_url_template, token)
        await self._session.commit()
        return url

    async def _tell_change_link(self, caller: Principal, new_email: str, owner: UserModel | None) -> str | None:
        lifetime = timedelta(seconds=self._settings.auth_email_change_ttl_seconds)
        url = None
        if owner is None:
            token = await self._tokens.issue(
                caller.user_id, TokenPurpose.EMAIL_CHANGE, lifetime, new_email=new_email, session_id=caller.session_id
            )
            url = self._settings.link(self._settings.auth_email_change_url_template, token)
        await self._session.commit()
        return url

    async def _preview(self, token: str, purpose: TokenPurpose) -> str:
        change = await self._tokens.find_email_change(token, purpose)
        if change is None:
            raise InvalidTokenError
        return change.new_email

    async def _move(self, token: str, purpose: TokenPurpose, act: Act) -> tuple[str, EmailChange]:
        """Spend the link and move the account; the address that it leaves, and what was changed."""
        change = await self._tokens.find_email_change(token, purpose)
        if change is None:
            raise InvalidTokenError
        act.set_actor(change.user_id)
        await self._users.lock_address(change.new_email, and_user=change.user_id)
        if not await self._tokens.spend(token, purpose):
            raise InvalidTokenError
        old_email = (await self._users.get_by_id(change.user_id)).email
        try:
            is_moved = await self._users.set_email(change.user_id, change.new_email)
        except UserEmailTakenError:
            raise InvalidTokenError from None
        if not is_moved:
            raise InvalidTokenError
        await self._users.delete_pending(change.new_email)
        await self._end_links(change.user_id)
        return old_email, change
