"""`/auth`: what a person can do about their password, their address and their account."""

from dataclasses import asdict

from fastapi import APIRouter, Response

from src.api.dependencies import IN_STEPS, ContextDep, CurrentUser, SettingUpUser, UnitOfWorkDep
from src.api.errors import LIMITED_BODY_ERRORS, TOKEN_ERRORS, document
from src.api.etags import ETAG_HEADER, etag_of
from src.api.schemas.accounts import (
    DeleteAccountRequest,
    EmailChangeAccepted,
    EmailChangeRequest,
    EmailRequest,
    PasswordChangeRequest,
    PasswordResetAccepted,
    PasswordResetRequest,
    TokenRequest,
)
from src.api.schemas.second_factor import Me, SecondFactorState
from src.core.exceptions import (
    InvalidTokenError,
    LastAdminError,
    SecondFactorRequiredError,
    WrongCodeError,
    WrongPasswordError,
)
from src.services import CredentialService

router = APIRouter(prefix="/auth", tags=["My account"])

_PASSWORD_ERRORS = document(
    *LIMITED_BODY_ERRORS, *TOKEN_ERRORS, WrongPasswordError, SecondFactorRequiredError, WrongCodeError
)


@router.get("/me", responses=ETAG_HEADER | document(*TOKEN_ERRORS))
async def get_me(response: Response, uow: UnitOfWorkDep, caller: SettingUpUser) -> Me:
    """Who the access token belongs to. The ETag is that of the user's record at `/api/users/{id}`."""
    response.headers["ETag"] = etag_of(caller.user)
    is_set, codes_left = await uow.second_factors.find_state(caller.user_id)
    return Me(**asdict(caller.user), second_factor=SecondFactorState(is_set=is_set, recovery_codes_left=codes_left))


@router.post("/password-change", status_code=204, responses=_PASSWORD_ERRORS)
async def change_password(body: PasswordChangeRequest, context: ContextDep, caller: CurrentUser) -> None:
    """Replace the password. All other sessions end, and so does every link that was emailed."""
    await CredentialService(context).change_password(
        caller,
        current_password=body.current_password.get_secret_value(),
        code=body.read_code(),
        new_password=body.new_password.get_secret_value(),
    )


@router.post(
    "/password-reset/request", status_code=202, dependencies=[IN_STEPS], responses=document(*LIMITED_BODY_ERRORS)
)
async def request_password_reset(body: EmailRequest, context: ContextDep) -> PasswordResetAccepted:
    """Email a link that sets a new password. The answer is the same for every address."""
    return PasswordResetAccepted(
        detail="If this address has an account, a link is on its way.",
        reset_url=await CredentialService(context).request_password_reset(body.email),
    )


@router.post(
    "/password-reset/confirm",
    status_code=204,
    responses=document(*LIMITED_BODY_ERRORS, InvalidTokenError),
)
async def reset_password(body: PasswordResetRequest, context: ContextDep) -> None:
    """Set a new password with the token of the link. All sessions end; log in with the new password."""
    await CredentialService(context).reset_password(
        token=body.token.get_secret_value(), new_password=body.new_password.get_secret_value()
    )


@router.post("/email-change/request", status_code=202, responses=_PASSWORD_ERRORS)
async def request_email_change(
    body: EmailChangeRequest, context: ContextDep, caller: CurrentUser
) -> EmailChangeAccepted:
    """Email a link to the new address. Nothing changes until it is followed."""
    url = await CredentialService(context).request_email_change(
        caller,
        new_email=body.new_email,
        current_password=body.current_password.get_secret_value(),
        code=body.read_code(),
    )
    return EmailChangeAccepted(detail="A link is on its way to the new address.", email_change_url=url)


@router.post(
    "/email-change/confirm",
    status_code=204,
    responses=document(*LIMITED_BODY_ERRORS, InvalidTokenError),
)
async def confirm_email_change(body: TokenRequest, context: ContextDep) -> None:
    """Move the account to the new address with the token of the link. All sessions end but the one that asked."""
    await CredentialService(context).confirm_email_change(body.token.get_secret_value())


@router.post(
    "/email-change/revert",
    status_code=204,
    responses=document(*LIMITED_BODY_ERRORS, InvalidTokenError),
)
async def revert_email_change(body: TokenRequest, context: ContextDep) -> None:
    """Put the old address back, with the token of the link that was emailed to it. All sessions end."""
    await CredentialService(context).revert_email_change(body.token.get_secret_value())


@router.post("/delete-account", status_code=204, responses=_PASSWORD_ERRORS | document(LastAdminError))
async def delete_account(body: DeleteAccountRequest, context: ContextDep, caller: CurrentUser) -> None:
    """Delete the account and everything about it, at once and for good. The address is free again."""
    await CredentialService(context).delete_account(
        caller, current_password=body.current_password.get_secret_value(), code=body.read_code()
    )
