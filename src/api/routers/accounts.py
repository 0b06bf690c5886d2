"""`/auth`: how an account begins."""

from fastapi import APIRouter

from src.api.dependencies import ContextDep
from src.api.errors import LIMITED_ERRORS, document
from src.api.schemas.accounts import (
    Accepted,
    AcceptInvitationRequest,
    ActivationRequest,
    ActivationResponse,
    EmailRequest,
    SignUpRequest,
    SignUpResponse,
)
from src.core.exceptions import InvalidTokenError, PasswordNeededError, SignUpClosedError, UserEmailTakenError
from src.services import AccountService

router = APIRouter(prefix="/auth", tags=["Accounts"])


@router.post("/signup", status_code=201, responses=document(*LIMITED_ERRORS, SignUpClosedError, UserEmailTakenError))
async def sign_up(body: SignUpRequest, context: ContextDep) -> SignUpResponse:
    """Begin an account. It becomes usable when the link that proves the address has been followed.

    When links are emailed, the answer is the same whether or not the address already has an account. When they are in
    the answer (SMTP is not configured), an address that has one is a 409.

    Where people come by invitation alone (`AUTH_SIGN_UP=invitation`), every sign-up is a 403.
    """
    outcome = await AccountService(context).sign_up(
        email=body.email, password=body.password.get_secret_value(), name=body.name
    )
    return SignUpResponse(
        user_id=outcome.user_id,
        activation_required=outcome.activation_required,
        activation_url=outcome.activation_url,
    )


@router.post("/activate", responses=document(*LIMITED_ERRORS, InvalidTokenError, PasswordNeededError))
async def activate(body: ActivationRequest, context: ContextDep) -> ActivationResponse:
    """Confirm the address with the token of the link. It logs nobody in.

    While several sign-ups wait for the address, any of their links will do, and the account gets a new `password`,
    since a stranger may have chosen the one that came with the sign-up. Without it the answer is 409 `PASSWORD_NEEDED`:
    ask for one, and send the same token again. While only one waits, a `password` is ignored.

    Wrong, used and expired tokens are the same 400.
    """
    password = body.password.get_secret_value() if body.password is not None else None
    user_id = await AccountService(context).activate(body.token.get_secret_value(), new_password=password)
    return ActivationResponse(user_id=user_id, is_active=True)


@router.post("/invitation/accept", responses=document(*LIMITED_ERRORS, InvalidTokenError))
async def accept_invitation(body: AcceptInvitationRequest, context: ContextDep) -> ActivationResponse:
    """Choose a password with the token of the invitation, and have an active account. It logs nobody in."""
    user_id = await AccountService(context).accept_invitation(
        token=body.token.get_secret_value(), password=body.password.get_secret_value()
    )
    return ActivationResponse(user_id=user_id, is_active=True)


@router.post("/activation/resend", status_code=202, responses=document(*LIMITED_ERRORS))
async def resend_activation(body: EmailRequest, context: ContextDep) -> Accepted:
    """Email the activation link again. The answer is the same for every address."""
    await AccountService(context).resend_activation(body.email)
    return Accepted(detail="If a sign-up with this address waits to be confirmed, a new link is on its way.")
