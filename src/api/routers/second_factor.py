"""`/auth/second-factor`: set it up, keep recovery codes, remove it."""

from fastapi import APIRouter

from src.api.dependencies import ContextDep, CurrentUser, SettingUpUser
from src.api.errors import LIMITED_BODY_ERRORS, TOKEN_ERRORS, document
from src.api.schemas.second_factor import (
    BeginSecondFactorRequest,
    ConfirmSecondFactorRequest,
    RecoveryCodes,
    SecondFactorSetUp,
)
from src.core.exceptions import (
    ReauthenticationRequiredError,
    SecondFactorNotSetError,
    SecondFactorSetError,
    WrongCodeError,
    WrongPasswordError,
)
from src.services import SecondFactorService

router = APIRouter(prefix="/auth/second-factor", tags=["Second factor"])

_CHANGE_ERRORS = document(*TOKEN_ERRORS, ReauthenticationRequiredError, SecondFactorNotSetError)


@router.post("", responses=document(*LIMITED_BODY_ERRORS, *TOKEN_ERRORS, WrongPasswordError, SecondFactorSetError))
async def begin_second_factor(
    body: BeginSecondFactorRequest, context: ContextDep, caller: SettingUpUser
) -> SecondFactorSetUp:
    """Begin: get a secret for an authenticator app (TOTP, RFC 6238). Log-ins ask for no code until one has confirmed
    that the app has it.

    Beginning again makes another secret. It waits ten minutes to be confirmed.
    """
    set_up = await SecondFactorService(context).begin(caller, current_password=body.current_password.get_secret_value())
    return SecondFactorSetUp(secret=set_up.secret, otpauth_uri=set_up.otpauth_uri, qr_code=set_up.qr_code)


@router.post(
    "/confirm",
    responses=document(
        *LIMITED_BODY_ERRORS,
        *TOKEN_ERRORS,
        WrongCodeError,
        ReauthenticationRequiredError,
        SecondFactorNotSetError,
        SecondFactorSetError,
    ),
)
async def confirm_second_factor(
    body: ConfirmSecondFactorRequest, context: ContextDep, caller: SettingUpUser
) -> RecoveryCodes:
    """Confirm with a code that the app shows: from now on log-ins ask for one. All other sessions end.

    The answer holds ten recovery codes, for whoever loses the app. Nobody can read them again.
    """
    codes = await SecondFactorService(context).confirm(caller, code=body.code.get_secret_value())
    return RecoveryCodes(recovery_codes=list(codes))


@router.post("/recovery-codes", responses=_CHANGE_ERRORS)
async def renew_recovery_codes(context: ContextDep, caller: CurrentUser) -> RecoveryCodes:
    """Ten new recovery codes; those from before work no longer. It needs a code that was proved lately: at the log-in,
    or at `/auth/reauthenticate`."""
    return RecoveryCodes(recovery_codes=list(await SecondFactorService(context).renew_recovery_codes(caller)))


@router.delete("", status_code=204, responses=_CHANGE_ERRORS)
async def remove_second_factor(context: ContextDep, caller: CurrentUser) -> None:
    """Remove the second factor and its recovery codes. It needs a code that was proved lately: at the log-in, or at
    `/auth/reauthenticate`."""
    await SecondFactorService(context).remove(caller)
