"""`/auth`: what a person can do about their password, their address and their account."""

from fastapi import APIRouter, Response

from src.api.dependencies import CredentialsDep, CurrentUser, SessionDep
from src.api.errors import BODY_ERRORS, TOKEN_ERRORS, document
from src.api.etags import etag_of
from src.api.schemas import (
    DeleteAccountRequest,
    EmailChangeAccepted,
    EmailChangeRequest,
    EmailRequest,
    PasswordChangeRequest,
    PasswordResetAccepted,
    PasswordResetRequest,
    TokenRequest,
    UserRecord,
)
from src.core.exceptions import BadRequestException, InvalidTokenError, WrongPasswordError
from src.db.repositories import UserRepository

router = APIRouter(prefix="/auth", tags=["My account"])

_PASSWORD_ERRORS = document(*BODY_ERRORS, BadRequestException, *TOKEN_ERRORS, WrongPasswordError)


@router.get("/me", responses=document(*TOKEN_ERRORS))
async def read_me(response: Response, session: SessionDep, caller: CurrentUser) -> UserRecord:
    """Who the access token belongs to."""
    record = await UserRepository(session).get_record(caller.user_id)
    response.headers["ETag"] = etag_of(record)
    return UserRecord.model_validate(record)


@router.post("/password-change", status_code=204, responses=_PASSWORD_ERRORS)
async def change_password(body: PasswordChangeRequest, credentials: CredentialsDep, caller: CurrentUser) -> None:
    """Replace the password. All other sessions end, and so does every link that was mailed."""
    await credentials.change_password(
        caller,
        current_password=body.current_password.get_secret_value(),
        new_password=body.new_password.get_secret_value(),
    )


@router.post("/password-reset/request", status_code=202, responses=document(*BODY_ERRORS, BadRequestException))
async def request_password_reset(body: EmailRequest, credentials: CredentialsDep) -> PasswordResetAccepted:
    """Mail a link that sets a new password. The answer is the same for every address."""
    return PasswordResetAccepted(
        detail="If this address has an account, a link is on its way.",
        reset_url=await credentials.request_password_reset(body.email),
    )


@router.post(
    "/password-reset/confirm",
    status_code=204,
    responses=document(*BODY_ERRORS, BadRequestException, InvalidTokenError),
)
async def reset_password(body: PasswordResetRequest, credentials: CredentialsDep) -> None:
    """Set a new password with the token of the link. All sessions end; log in with the new password."""
    await credentials.reset_password(
        token=body.token.get_secret_value(), new_password=body.new_password.get_secret_value()
    )


@router.post("/email-change/request", status_code=202, responses=_PASSWORD_ERRORS)
async def request_email_change(
    body: EmailChangeRequest, credentials: CredentialsDep, caller: CurrentUser
) -> EmailChangeAccepted:
    """Mail a link to the new address. Nothing changes until it is followed."""
    url = await credentials.request_email_change(
        caller, new_email=body.new_email, current_password=body.current_password.get_secret_value()
    )
    return EmailChangeAccepted(detail="A link is on its way to the new address.", email_change_url=url)


@router.post(
    "/email-change/confirm",
    status_code=204,
    responses=document(*BODY_ERRORS, BadRequestException, InvalidTokenError),
)
async def confirm_email_change(body: TokenRequest, credentials: CredentialsDep) -> None:
    """Move the account to the new address with the token of the link. All sessions end but the one that asked."""
    await credentials.confirm_email_change(body.token.get_secret_value())


@router.post(
    "/email-change/revert",
    status_code=204,
    responses=document(*BODY_ERRORS, BadRequestException, InvalidTokenError),
)
async def revert_email_change(body: TokenRequest, credentials: CredentialsDep) -> None:
    """Put the old address back, with the token of the link that it was mailed. All sessions end."""
    await credentials.revert_email_change(body.token.get_secret_value())


@router.post("/delete-account", status_code=204, responses=_PASSWORD_ERRORS)
async def delete_account(body: DeleteAccountRequest, credentials: CredentialsDep, caller: CurrentUser) -> None:
    """Delete the account and everything about it, at once and for good. The address is free again."""
    await credentials.delete_account(caller, current_password=body.current_password.get_secret_value())
