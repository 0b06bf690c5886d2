"""Proofs that several use cases ask for: a code of the second factor, and a recent one of who acts. None commits."""

import logging
from datetime import timedelta

from src.core.callers import AuthenticatedUser, Caller
from src.core.encryption import DecryptionError, Encrypted
from src.core.exceptions import ReauthenticationRequiredError, ServiceUnavailableException
from src.core.kinds import EmailKind
from src.core.second_factor import find_step
from src.db.base import utc_now
from src.db.models import SecondFactorModel
from src.services.context import Context

log = logging.getLogger(__name__)


async def consume_code(context: Context, factor: SecondFactorModel, code: str, *, email: str) -> bool:
    """Use up a code of the authenticator app, or a recovery code; false if it is neither, or was used before.

    The user's row is locked. A recovery code that is used sends its owner, at `email`, a notice of how many are left.
    Raises `ServiceUnavailableException` where the secret cannot be decrypted.
    """
    user_id, factors = factor.user_id, context.uow.second_factors
    step = find_step(read_secret(context, factor), code)
    if step is not None:
        return await factors.claim_step(user_id, step)
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
    """For acts that need a recent proof of who acts (ASVS 5.0, 7.5.1); whoever is no person has just proved it.

    `by_code` asks for one by the second factor: who has taken over a session, and knows the password, must not get rid
    of it. Raises `ReauthenticationRequiredError`.
    """
    if not isinstance(caller, AuthenticatedUser):
        return
    proved_at = caller.second_factor_at if by_code else caller.authenticated_at
    within = timedelta(seconds=context.settings.auth_reauthentication_seconds)
    if proved_at is None or utc_now() - proved_at > within:
        raise ReauthenticationRequiredError
