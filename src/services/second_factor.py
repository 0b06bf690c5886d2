"""How people set a second factor up, renew its recovery codes, and remove it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import UUID

from src.core.callers import AuthenticatedUser
from src.core.exceptions import (
    InvalidAccessTokenError,
    SecondFactorNotSetError,
    SecondFactorSetError,
    WrongCodeError,
)
from src.core.kinds import EmailKind, TokenPurpose
from src.core.second_factor import draw_qr_code, find_step, new_recovery_codes, new_totp_secret, otpauth_uri
from src.db.base import utc_now
from src.db.models import EventKind, SecondFactorModel
from src.services.context import Service
from src.services.proofs import read_secret, reauthorize, require_fresh_proof, verify_password

SET_UP_LIFETIME = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class SetUp:
    """What an authenticator app needs, once: to be typed, to be opened, or to be scanned."""

    secret: str
    otpauth_uri: str
    qr_code: str  # an SVG element


class SecondFactorService(Service):
    """A session that ended meanwhile raises `InvalidAccessTokenError`. Changing a factor that is set needs a recent
    proof by a code, else `ReauthenticationRequiredError`: who has taken over a session, and knows the password, must
    not get rid of it."""

    async def begin(self, caller: AuthenticatedUser, *, current_password: str) -> SetUp:
        """Make a secret for an authenticator app, in the place of one that was never confirmed. Until a code confirms
        it, nobody is asked for one. The password is a fresh proof of who the caller is.

        Raises `SecondFactorSetError` where a factor is set, and `WrongPasswordError`.
        """
        async with self.context.recording(EventKind.SECOND_FACTOR_SET_UP, by=caller, user_id=caller.user_id) as event:
            event.changes = "begun"
            if await self.uow.second_factors.is_set(caller.user_id):
                raise SecondFactorSetError  # before the password, which would count as a wrong guess
            verified = await verify_password(self.context, caller, current_password)
            secret = new_totp_secret()
            await self.uow.begin()
            await reauthorize(self.context, caller, verified)
            encrypted = self.context.encryption.encrypt(secret, user_id=caller.user_id)
            await self.uow.second_factors.begin(caller.user_id, encrypted)
            await self.uow.sessions.renew_proof(caller.session_id, by_code=False)
            await self.context.commit(event)
        uri = otpauth_uri(secret, account=caller.email, issuer=self._issuer())
        return SetUp(secret, uri, draw_qr_code(uri))

    async def confirm(self, caller: AuthenticatedUser, *, code: str) -> Sequence[str]:
        """Set the factor, whose app shows this code; the code works no second time. The recovery codes, which nobody
        can read again. All other sessions end.

        Raises `SecondFactorNotSetError` where nothing was begun in the last ten minutes, `SecondFactorSetError`,
        `WrongCodeError`, and `ReauthenticationRequiredError`.
        """
        async with self.context.recording(EventKind.SECOND_FACTOR_SET_UP, by=caller, user_id=caller.user_id) as event:
            require_fresh_proof(self.context, caller)
            places = await self.context.limits.take_code(caller.user_id, in_session=True)
            await self._begin(caller)
            factor = await self._get_unconfirmed(caller.user_id)
            step = find_step(read_secret(self.context, factor), code)
            if step is None:
                raise WrongCodeError
            await self.uow.second_factors.confirm(caller.user_id, step=step)
            codes = await self._renew_recovery_codes(caller.user_id)
            await self.uow.sessions.revoke_all(caller.user_id, except_id=caller.session_id)
            await self.uow.sessions.renew_proof(caller.session_id, by_code=True)
            await self.context.limits.give_back(places)
            await self.context.notify(EmailKind.SECOND_FACTOR_SET, to=caller.email, user_id=caller.user_id)
            await self.context.commit(event)
            return codes

    async def renew_recovery_codes(self, caller: AuthenticatedUser) -> Sequence[str]:
        """Ten new recovery codes, which nobody can read again; those from before end.

        Raises `SecondFactorNotSetError`, and `ReauthenticationRequiredError`.
        """
        async with self.context.recording(EventKind.RECOVERY_CODE_RENEWAL, by=caller, user_id=caller.user_id) as event:
            await self._begin_change(caller)
            codes = await self._renew_recovery_codes(caller.user_id)
            await self.context.notify(EmailKind.RECOVERY_CODES_RENEWED, to=caller.email, user_id=caller.user_id)
            await self.context.commit(event)
            return codes

    async def remove(self, caller: AuthenticatedUser) -> None:
        """Remove the factor and its recovery codes: log-ins ask for the password alone.

        Raises `SecondFactorNotSetError`, and `ReauthenticationRequiredError`.
        """
        async with self.context.recording(EventKind.SECOND_FACTOR_REMOVAL, by=caller, user_id=caller.user_id) as event:
            await self._begin_change(caller)
            await self.uow.second_factors.remove(caller.user_id)
            await self.uow.tokens.revoke(caller.user_id, TokenPurpose.SECOND_FACTOR)  # or they would wait for the next
            await self.context.notify(EmailKind.SECOND_FACTOR_REMOVED, to=caller.email, user_id=caller.user_id)
            await self.context.commit(event)

    async def _begin(self, caller: AuthenticatedUser) -> None:
        """Open the transaction, lock the account, and check again that the session lives."""
        await self.uow.begin()
        await self.uow.users.lock_users(caller.user_id)
        if await self.uow.sessions.find_caller(caller.user_id, caller.session_id) is None:
            raise InvalidAccessTokenError

    async def _begin_change(self, caller: AuthenticatedUser) -> None:
        await self._begin(caller)
        if not await self.uow.second_factors.is_set(caller.user_id):
            raise SecondFactorNotSetError
        require_fresh_proof(self.context, caller, by_code=True)

    async def _get_unconfirmed(self, user_id: UUID) -> SecondFactorModel:
        factor = await self.uow.second_factors.find({"user_id": user_id})
        if factor and factor.confirmed_at is not None:
            raise SecondFactorSetError
        if factor is None or factor.created_at + SET_UP_LIFETIME <= utc_now():
            raise SecondFactorNotSetError
        return factor

    async def _renew_recovery_codes(self, user_id: UUID) -> Sequence[str]:
        codes = new_recovery_codes()
        await self.uow.second_factors.replace_recovery_codes(user_id, codes)
        return codes

    def _issuer(self) -> str:
        """What an authenticator app shows beside the code: where the account is."""
        return urlsplit(self.settings.server_public_url).hostname or self.settings.issuer
