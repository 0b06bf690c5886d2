"""Proofs that several use cases ask for: a code of the second factor, and a recent one of who acts. None commits."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from src.core.callers import AuthenticatedUser, Caller
from src.core.encryption import DecryptionError, Encrypted
from src.core.exceptions import (
    InvalidAccessTokenError,
    ReauthenticationRequiredError,
    SecondFactorRequiredError,
    ServiceUnavailableException,
    WrongCodeError,
    WrongPasswordError,
)
from src.core.hash_pool import HashKind
from src.core.kinds import EmailKind
from src.core.limits import Place
from src.core.second_factor import find_step, is_totp_code
from src.db.base import utc_now
from src.db.models import SecondFactorModel
from src.services.context import Context

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifiedPassword:
    """The hash that a password was verified against, and what the right guess gives back."""

    hashed_password: str
    places: Sequence[Place]


async def verify_password(context: Context, caller: AuthenticatedUser, password: str) -> VerifiedPassword:
    """Hash what the caller says is their password; no transaction may be open. Raises `WrongPasswordError`."""
    context.passwords.require_room(HashKind.ACCOUNT_CHANGE)
    places = await context.limits.take_guess(caller.email, is_anonymous=False)
    stored = await context.uow.users.find_hashed_password(caller.user_id)
    async with context.limits.given_back_on(ServiceUnavailableException, places):
        is_right = await context.passwords.verify(password, stored, kind=HashKind.ACCOUNT_CHANGE)
    if not is_right or stored is None:
        raise WrongPasswordError
    return VerifiedPassword(stored, places)


async def reauthorize(context: Context, caller: AuthenticatedUser, verified: VerifiedPassword) -> None:
    """Lock the account, if password and session still are what the caller has proved; the transaction has begun.

    Raises `InvalidAccessTokenError` if either has ended.
    """
    if not await context.uow.users.lock_account(
        caller.user_id, hashed_password=verified.hashed_password, session_id=caller.session_id
    ):
        raise InvalidAccessTokenError
    await context.limits.give_back(verified.places)


async def require_code(context: Context, caller: AuthenticatedUser, code: str | None) -> None:
    """As `prove_second_factor` without a code, before a right password could count as a wrong guess."""
    is_missing = code is None and not _is_recent(context, caller.second_factor_at)
    if is_missing and await context.uow.second_factors.is_set(caller.user_id):
        raise SecondFactorRequiredError


async def prove_second_factor(
    context: Context, caller: AuthenticatedUser, code: str | None, places: Sequence[Place]
) -> None:
    """Where a factor is set, the password alone is no proof: use up a code, or rely on one that was proved lately. The
    account is locked; `places` are those that were taken for the code.

    Raises `SecondFactorRequiredError` without either, and `WrongCodeError`.
    """
    await require_code(context, caller, code)
    factor = await context.uow.second_factors.find_confirmed(caller.user_id)
    if factor and code is not None:
        if not await consume_code(context, factor, code, email=caller.email):
            raise WrongCodeError
        await context.uow.sessions.renew_proof(caller.session_id, by_code=True)
    await context.limits.give_back(places)


async def take_code(context: Context, caller: AuthenticatedUser, code: str | None) -> Sequence[Place]:
    """The places of a guess at a code, if there is one; no transaction may be open."""
    return [] if code is None else await context.limits.take_code(caller.user_id, in_session=True)


async def consume_code(context: Context, factor: SecondFactorModel, code: str, *, email: str) -> bool:
    """Use up a code of the authenticator app, or a recovery code; false if it is neither, or was used before.

    The user's row is locked. A recovery code that is used sends its owner, at `email`, a notice of how many are left.
    Raises `ServiceUnavailableException` where the secret cannot be decrypted.
    """
    user_id, factors = factor.user_id, context.uow.second_factors
    if is_totp_code(code):
        step = find_step(read_secret(context, factor), code)
        return step is not None and await factors.claim_step(user_id, step)
    if not await factors.consume_recovery_code(user_id, code):
        return False
    left = await factors.count_recovery_codes(user_id)
    await context.notify(EmailKind.RECOVERY_CODE_USED, to=email, user_id=user_id, left=str(left))
    return True


def read_secret(context: Context, factor: SecondFactorModel) -> str:
    """Raises `ServiceUnavailableException` where it cannot be decrypted: that is ours to mend, and no wrong code."""
    try:
        encrypted = Encrypted(factor.key_id, factor.encrypted_secret)
        return context.encryption.decrypt(encrypted, user_id=factor.user_id)
    except DecryptionError as error:
        log.error("The second factor of user %s cannot be read: %s", factor.user_id, error)  # noqa: TRY400 - no traceback
        raise ServiceUnavailableException from None


def require_fresh_proof(context: Context, caller: Caller, *, by_code: bool = False) -> None:
    """For acts that need a recent proof of who acts (ASVS 5.0, 7.5.1). Other services and the command line prove who
    they are each time.

    `by_code` asks for one by the second factor. Raises `ReauthenticationRequiredError`.
    """
    if not isinstance(caller, AuthenticatedUser):
        return
    if not _is_recent(context, caller.second_factor_at if by_code else caller.authenticated_at):
        raise ReauthenticationRequiredError


def _is_recent(context: Context, proved_at: datetime | None) -> bool:
    within = timedelta(seconds=context.settings.auth_reauthentication_seconds)
    return proved_at is not None and utc_now() - proved_at <= within
