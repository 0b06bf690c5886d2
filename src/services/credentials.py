"""What a person can do about their password, their address and their account: change, recover, leave."""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.exceptions import (
    InvalidAccessTokenError,
    InvalidTokenError,
    UserEmailTakenError,
    ValidationException,
    WrongPasswordError,
)
from src.core.passwords import PasswordHasher, check_password
from src.core.settings import Settings
from src.db.database import begin_writing
from src.db.models import TokenPurpose
from src.db.repositories import Principal, SessionRepository, UserRepository, UserTokenRepository
from src.email import Message, messages


class CredentialService:
    """Where a password is asked for, a wrong one raises `WrongPasswordError`, and a session or password that ended
    while it was verified raises `InvalidAccessTokenError`.

    `post` takes the mails that go out once the answer is sent. Links are in answers only by the explicit setting.
    """

    def __init__(
        self,
        session: AsyncSession,
        *,
        settings: Settings,
        passwords: PasswordHasher,
        post: Callable[[Message], None] | None,
    ) -> None:
        self._session = session
        self._users = UserRepository(session)
        self._tokens = UserTokenRepository(session)
        self._sessions = SessionRepository(session)
        self._settings = settings
        self._passwords = passwords
        self._post = post

    async def change_password(self, caller: Principal, *, current_password: str, new_password: str) -> None:
        """Replace the password. Ends the caller's other sessions and every link that was mailed to them.

        Raises `ValidationException` for a weak password.
        """
        self._check_new_password(new_password, email=caller.email)
        seen_hash = await self._verify(caller, current_password)
        hashed_password = await self._passwords.hash(new_password)
        await begin_writing(self._session)
        await self._claim(caller, seen_hash)
        await self._users.set_password(caller.user_id, hashed_password)
        await self._tokens.end_all(caller.user_id)
        await self._sessions.revoke_all(caller.user_id, except_id=caller.session_id)
        await self._session.commit()

    async def request_password_reset(self, email: str) -> str | None:
        """Mail a link to the owner of the address, if there is one. Returns it only by the explicit setting."""
        if not self._can_send_links():
            return None
        await begin_writing(self._session)
        await self._users.lock_address(email)
        owner = await self._users.find_owner(email)
        if owner is None or not owner.is_active:
            return None
        lifetime = timedelta(seconds=self._settings.auth_password_reset_ttl_seconds)
        token = await self._tokens.issue(owner.id, TokenPurpose.PASSWORD_RESET, lifetime)
        await self._session.commit()
        url = self._settings.link(self._settings.auth_password_reset_url_template, token)
        return self._hand_over(url, messages.password_reset(to=owner.email, url=url))

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
        user = await self._tokens.find_user(token, TokenPurpose.PASSWORD_RESET)
        await self._session.close()
        if user is None:
            raise InvalidTokenError
        self._check_new_password(new_password, email=user.email)
        hashed_password = await self._passwords.hash(new_password)
        await begin_writing(self._session)
        await self._users.lock_address(user.email)
        if not await self._tokens.spend(token, TokenPurpose.PASSWORD_RESET):
            raise InvalidTokenError
        if not await self._users.set_password(user.id, hashed_password):
            raise InvalidTokenError
        await self._tokens.end_all(user.id)
        await self._sessions.revoke_all(user.id)
        await self._session.commit()

    async def request_email_change(self, caller: Principal, *, new_email: str, current_password: str) -> str | None:
        """Mail a link to the new address; returned only by the explicit setting. If the address has an owner, that
        owner is told, and nobody else.

        Raises `ValidationException` if the address is the caller's already.
        """
        if new_email == caller.email:
            raise ValidationException.for_field("new_email", "is your address already")
        seen_hash = await self._verify(caller, current_password)
        await begin_writing(self._session)
        await self._claim(caller, seen_hash)
        # For an owned address too, where nobody gets the link: the same statements take the same time.
        token = await self._tokens.issue(
            caller.user_id,
            TokenPurpose.EMAIL_CHANGE,
            timedelta(seconds=self._settings.auth_email_change_ttl_seconds),
            new_email=new_email,
            session_id=caller.session_id,
        )
        owner = await self._users.find_owner(new_email)
        await self._session.commit()
        url = self._settings.link(self._settings.auth_email_change_url_template, token)
        if owner:
            return self._hand_over(None, messages.already_registered(to=owner.email))
        return self._hand_over(url, messages.email_change(to=new_email, url=url))

    async def preview_email_change(self, token: str) -> str:
        """The address that the link would set; changes nothing. Raises `InvalidTokenError`."""
        change = await self._tokens.find_email_change(token)
        if change is None:
            raise InvalidTokenError
        return change.new_email

    async def confirm_email_change(self, token: str) -> None:
        """Move the account to the address that was stored with the link. Sign-ups that wait for it end, and so do the
        account's sessions, but for the one that asked.

        Raises `InvalidTokenError`, also when somebody owns the address by now.
        """
        await begin_writing(self._session)
        change = await self._tokens.find_email_change(token)
        if change is None:
            raise InvalidTokenError
        await self._users.lock_address(change.new_email, and_user=change.user_id)
        if not await self._tokens.spend(token, TokenPurpose.EMAIL_CHANGE):
            raise InvalidTokenError
        try:
            is_moved = await self._users.set_email(change.user_id, change.new_email)
        except UserEmailTakenError:
            raise InvalidTokenError from None
        if not is_moved:
            raise InvalidTokenError
        await self._users.delete_pending(change.new_email)
        await self._tokens.end_all(change.user_id)
        await self._sessions.revoke_all(change.user_id, except_id=change.session_id)
        await self._session.commit()

    async def delete_account(self, caller: Principal, *, current_password: str) -> None:
        """Delete the caller and everything about them. The address is free again."""
        seen_hash = await self._verify(caller, current_password)
        await begin_writing(self._session)
        await self._users.lock_address(caller.email, and_user=caller.user_id)
        await self._claim(caller, seen_hash)
        user = await self._users.get_by_id(caller.user_id)
        await self._users.delete_pending(user.email)
        await self._users.delete(user)
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

    def _can_send_links(self) -> bool:
        return self._post is not None or self._settings.auth_return_token_in_response

    def _hand_over(self, url: str | None, message: Message) -> str | None:
        if self._settings.auth_return_token_in_response:
            return url
        if self._post is not None:
            self._post(message)
        return None
