"""What a person can do about their password, their address and their account: change, recover, leave."""

from src.core.callers import AuthenticatedUser
from src.core.exceptions import (
    AppException,
    InvalidTokenError,
    UserDisabledError,
    UserEmailTakenError,
    UserNotFoundError,
    ValidationException,
)
from src.core.hash_pool import HashKind
from src.core.kinds import EmailKind, TokenPurpose
from src.db.models import EventKind, UserModel
from src.db.repositories import EmailChange
from src.services.account_steps import erase_account, revoke_credentials
from src.services.audit import AuditEvent
from src.services.context import Service
from src.services.outbox import issue_link
from src.services.proofs import prove_second_factor, reauthorize, require_code, take_code, verify_password


class CredentialService(Service):
    """Where a password is asked for, a wrong one raises `WrongPasswordError`, and a session or password that ended
    while it was verified raises `InvalidAccessTokenError`. Whoever has a second factor also proves that: by a `code`
    (a wrong one raises `WrongCodeError`), or by one that this session has proved lately; else it raises
    `SecondFactorRequiredError`. Links are in answers only by the explicit setting."""

    async def change_password(
        self, caller: AuthenticatedUser, *, current_password: str, code: str | None, new_password: str
    ) -> None:
        """Replace the password. Ends the caller's other sessions and every link that was mailed to them.

        Raises `ValidationException` for a weak password.
        """
        async with self.context.recording(EventKind.PASSWORD_CHANGE, by=caller, user_id=caller.user_id) as event:
            await self._check_password(new_password, email=caller.email, field="new_password")
            await require_code(self.context, caller, code)
            verified = await verify_password(self.context, caller, current_password)
            code_places = await take_code(self.context, caller, code)
            new_hash = await self.context.passwords.hash(new_password, kind=HashKind.ACCOUNT_CHANGE)
            await self.uow.begin()
            await reauthorize(self.context, caller, verified)
            await prove_second_factor(self.context, caller, code, code_places)
            await self.uow.users.set_password(caller.user_id, new_hash)
            await revoke_credentials(self.uow, caller.user_id, keep_session=caller.session_id)
            await self.context.notify(EmailKind.PASSWORD_CHANGED, to=caller.email, user_id=caller.user_id)
            await self.context.commit(event)

    async def request_password_reset(self, email: str) -> str | None:
        """Email a link to the owner of the address, if there is one. Returns it only by the explicit setting."""
        await self.context.limits.take_email(EventKind.PASSWORD_RESET_REQUEST, email)
        await self.uow.begin()
        await self.uow.users.lock_addresses(email)
        owner = await self.uow.users.find_owner(email)
        recipient = owner if owner and owner.is_active else None
        failure = None if recipient else (UserDisabledError if owner else UserNotFoundError).code
        event = self.context.audit.new_event(EventKind.PASSWORD_RESET_REQUEST, user_id=owner.id if owner else None)
        if self.settings.auth_return_token_in_response:
            url = await self._respond_with_reset_link(recipient)
            await self.context.commit(event, failure=failure)
            return url
        await self.context.notify(  # for an unknown address too: the same statements take the same time
            EmailKind.PASSWORD_RESET,
            to=recipient.email if recipient else email,
            user_id=recipient.id if recipient else None,
            is_for_nobody=recipient is None,
        )
        await self.context.commit(event, failure=failure)
        return None

    async def preview_password_reset(self, token: str) -> str:
        """The address whose password the link would reset; changes nothing. Raises `InvalidTokenError`."""
        user = await self.uow.tokens.find_user(token, TokenPurpose.PASSWORD_RESET)
        if user is None or not user.is_active:
            raise InvalidTokenError
        return user.email

    async def reset_password(self, *, token: str, new_password: str) -> None:
        """Set a new password by a mailed link. Ends every session and every other link; starts no session.

        Raises `InvalidTokenError`, and `ValidationException` for a weak password, which does not consume the link.
        """
        async with self.context.recording(EventKind.PASSWORD_RESET) as event:
            await self.context.limits.take_request()
            user = await self.uow.tokens.find_user(token, TokenPurpose.PASSWORD_RESET)
            if user is None:
                raise InvalidTokenError
            event.set_actor(user.id)
            await self._check_password(new_password, email=user.email, field="new_password")
            new_hash = await self.context.passwords.hash(new_password, kind=HashKind.ACCOUNT_CHANGE)
            await self.uow.begin()
            await self.uow.users.lock_addresses(user.email)
            if not await self.uow.tokens.consume(token, TokenPurpose.PASSWORD_RESET):
                raise InvalidTokenError
            if not await self.uow.users.set_password(user.id, new_hash):
                raise InvalidTokenError
            await revoke_credentials(self.uow, user.id)
            await self.context.limits.forgive(user.email)
            await self.context.notify(EmailKind.PASSWORD_CHANGED, to=user.email, user_id=user.id)
            await self.context.commit(event)

    async def request_email_change(
        self, caller: AuthenticatedUser, *, new_email: str, current_password: str, code: str | None
    ) -> str | None:
        """Email a link to the new address; returned only by the explicit setting. If the address has an owner, that
        owner gets a notice, and nobody else.

        Raises `ValidationException` if the address is the caller's already.
        """
        async with self.context.recording(EventKind.EMAIL_CHANGE_REQUEST, by=caller, user_id=caller.user_id) as event:
            self._check_address(new_email, field="new_email")
            if new_email == caller.email:
                raise ValidationException.for_field("new_email", "is your address already")
            await require_code(self.context, caller, code)
            places = await self.context.limits.take_email(EventKind.EMAIL_CHANGE_REQUEST, new_email, is_anonymous=False)
            async with self.context.limits.given_back_on(AppException, places):
                verified = await verify_password(self.context, caller, current_password)
                code_places = await take_code(self.context, caller, code)
                await self.uow.begin()
                await reauthorize(self.context, caller, verified)
                await prove_second_factor(self.context, caller, code, code_places)
            url = None
            if self.settings.auth_return_token_in_response:
                url = await self._respond_with_change_link(caller, new_email)
            else:
                await self._queue_change_link(caller, new_email)
            await self.context.commit(event)
            return url

    async def preview_email_change(self, token: str) -> str:
        """The address that the link would set; changes nothing. Raises `InvalidTokenError`."""
        return (await self._get_email_change(token, TokenPurpose.EMAIL_CHANGE)).new_email

    async def confirm_email_change(self, token: str) -> None:
        """Move the account to the address that was stored with the link. Sign-ups that wait for it end, and so do the
        account's sessions, but for the one that asked. The old address gets a link that undoes it.

        Raises `InvalidTokenError`, also when somebody owns the address by now.
        """
        async with self.context.recording(EventKind.EMAIL_CHANGE) as event:
            await self.context.limits.take_request()
            await self.uow.begin()
            change, old_email = await self._change_email(token, TokenPurpose.EMAIL_CHANGE, event)
            await revoke_credentials(self.uow, change.user_id, keep_session=change.session_id)
            await self.context.notify(
                EmailKind.EMAIL_CHANGED, to=old_email, user_id=change.user_id, new_email=change.new_email
            )
            await self.context.commit(event)

    async def preview_email_revert(self, token: str) -> str:
        """The address that the link would put back; changes nothing. Raises `InvalidTokenError`."""
        return (await self._get_email_change(token, TokenPurpose.EMAIL_REVERT)).new_email

    async def revert_email_change(self, token: str) -> None:
        """Put the old address back, by the link that it was mailed, and end every session.

        Raises `InvalidTokenError`, also when somebody owns the address by now.
        """
        async with self.context.recording(EventKind.EMAIL_REVERT) as event:
            await self.context.limits.take_request()
            await self.uow.begin()
            change, _ = await self._change_email(token, TokenPurpose.EMAIL_REVERT, event)
            await revoke_credentials(self.uow, change.user_id)
            # A notice of a later change would bring a link to whoever moved the account there.
            await self.uow.emails.cancel(change.user_id, [EmailKind.EMAIL_CHANGED], queued_after=change.issued_at)
            await self.context.commit(event)

    async def delete_account(self, caller: AuthenticatedUser, *, current_password: str, code: str | None) -> None:
        """Delete the caller and everything about them, but for the notices until they are sent. The address is free.

        Raises `LastAdminError` if nobody else is an active administrator.
        """
        async with self.context.recording(EventKind.ACCOUNT_DELETION, by=caller, user_id=caller.user_id) as event:
            await require_code(self.context, caller, code)
            verified = await verify_password(self.context, caller, current_password)
            code_places = await take_code(self.context, caller, code)
            await self.uow.begin()
            await self.uow.users.lock_addresses(caller.email, and_user=caller.user_id, and_admins=True)
            await reauthorize(self.context, caller, verified)
            await prove_second_factor(self.context, caller, code, code_places)
            user = await self.uow.users.get_by_id(caller.user_id)
            await erase_account(self.context, caller, user)
            await self.context.notify(EmailKind.ACCOUNT_DELETED, to=user.email, user_id=None)
            await self.context.commit(event)

    async def _respond_with_reset_link(self, recipient: UserModel | None) -> str | None:
        if recipient is None:
            return None
        return await issue_link(self.uow, self.settings, EmailKind.PASSWORD_RESET, recipient.id)

    async def _respond_with_change_link(self, caller: AuthenticatedUser, new_email: str) -> str | None:
        if await self.uow.users.find_owner(new_email):
            return None
        return await issue_link(
            self.uow,
            self.settings,
            EmailKind.EMAIL_CHANGE,
            caller.user_id,
            new_email=new_email,
            session_id=caller.session_id,
        )

    async def _queue_change_link(self, caller: AuthenticatedUser, new_email: str) -> None:
        owner = await self.uow.users.find_owner(new_email)
        if owner:
            await self.context.notify(EmailKind.ALREADY_REGISTERED, to=owner.email, user_id=owner.id)
            return
        session_id = str(caller.session_id)
        await self.context.notify(EmailKind.EMAIL_CHANGE, to=new_email, user_id=caller.user_id, session_id=session_id)

    async def _get_email_change(self, token: str, purpose: TokenPurpose) -> EmailChange:
        change = await self.uow.tokens.find_email_change(token, purpose)
        if change is None:
            raise InvalidTokenError
        return change

    async def _change_email(self, token: str, purpose: TokenPurpose, event: AuditEvent) -> tuple[EmailChange, str]:
        """Consume the link and move the account; what was changed, and the address that it has left."""
        change = await self._get_email_change(token, purpose)
        event.set_actor(change.user_id)
        await self.uow.users.lock_addresses(change.new_email, and_user=change.user_id)
        if not await self.uow.tokens.consume(token, purpose):
            raise InvalidTokenError
        old_email = (await self.uow.users.get_record(change.user_id)).email
        try:
            is_changed = await self.uow.users.set_email(change.user_id, change.new_email)
        except UserEmailTakenError:
            raise InvalidTokenError from None
        if not is_changed:
            raise InvalidTokenError
        await self.uow.users.delete_pending(change.new_email)
        return change, old_email
