"""`/auth`: log in, refresh, log out, and look after one's sessions."""

from typing import Annotated, NoReturn
from uuid import UUID

from fastapi import APIRouter, Depends, Form
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from src.api.dependencies import (
    IN_STEPS,
    NO_TOKEN_NEEDED,
    ContextDep,
    CurrentUser,
    OptionalUser,
    UnitOfWorkDep,
    refuse_other_sites,
)
from src.api.errors import BODY_ERRORS, LIMITED_BODY_ERRORS, TOKEN_ERRORS, document
from src.api.refresh_cookie import COOKIE_PARAMETER, RefreshCookieDep
from src.api.schemas.sessions import (
    LogInRequest,
    RefreshRequest,
    ServiceTokenResponse,
    SessionList,
    SessionRecord,
    TokenGrant,
    TokenResponse,
)
from src.core.exceptions import (
    BadRequestException,
    ForeignOriginError,
    InvalidClientError,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    InvalidScopeError,
    PayloadTooLargeException,
    SessionNotFoundError,
    TooManyRequestsException,
    UnauthorizedException,
    ValidationException,
)
from src.services import ClientService, SessionService

router = APIRouter(prefix="/auth", tags=["Sessions"])


class _ClientCredentials(HTTPBasic):
    def make_not_authenticated_error(self) -> NoReturn:
        """What cannot be read is no better than a wrong secret (RFC 6749, section 5.2)."""
        raise InvalidClientError


_client_credentials = _ClientCredentials(
    scheme_name="ClientCredentials", description="The id and secret of a service.", auto_error=False
)


@router.post(
    "/login",
    dependencies=[IN_STEPS],
    responses=document(*LIMITED_BODY_ERRORS, InvalidCredentialsError, ForeignOriginError),
)
async def log_in(body: LogInRequest, context: ContextDep, cookie: RefreshCookieDep) -> TokenResponse:
    """Start a session with an e-mail address and a password.

    Wrong, unknown, unconfirmed and disabled are the same 401. `use_cookie` is for front ends in browsers.
    """
    if body.use_cookie:
        cookie.check_wanted()
    pair = await SessionService(context).log_in(email=body.email, password=body.password.get_secret_value())
    return cookie.answer(pair) if body.use_cookie else TokenResponse.of(pair)


@router.post(
    "/token",
    dependencies=[IN_STEPS, Depends(refuse_other_sites)],
    # HTTP Basic is one of three ways: the framework would document it as the only one.
    openapi_extra={"security": [{}]},
    responses=document(
        PayloadTooLargeException,
        ValidationException,
        BadRequestException,
        InvalidCredentialsError,
        InvalidClientError,
        InvalidScopeError,
        ForeignOriginError,
        TooManyRequestsException,
    ),
)
async def issue_token(
    form: Annotated[TokenGrant, Form()],
    basic: Annotated[HTTPBasicCredentials | None, Depends(_client_credentials)],
    context: ContextDep,
) -> TokenResponse | ServiceTokenResponse:
    """The token endpoint of OAuth 2.0. `grant_type=password` is `/auth/login` as a form (RFC 6749, section 4.3), for
    the Authorize button and OAuth libraries; `username` is the e-mail address.

    `grant_type=client_credentials` (section 4.4) gives another service a token of its own, for all its scopes or for
    those in `scope`. It sends its id and secret as HTTP Basic, or in the form.
    """
    if form.grant_type == "password":
        email, password = form.person()
        return TokenResponse.of(await SessionService(context).log_in(email=email, password=password))
    client_id, secret = form.service(basic)
    token = await ClientService(context).issue_token(client_id=client_id, client_secret=secret, scopes=form.scopes())
    return ServiceTokenResponse.of(token)


@router.post(
    "/refresh",
    openapi_extra=COOKIE_PARAMETER,
    responses=document(*BODY_ERRORS, InvalidRefreshTokenError, ForeignOriginError),
)
async def refresh(context: ContextDep, cookie: RefreshCookieDep, body: RefreshRequest | None = None) -> TokenResponse:
    """Exchange a refresh token for the next pair of tokens. Each refresh token works once.

    Sent again within a few seconds, it gets the same successor; later, it ends the session, since somebody else has it.
    One that came in the cookie `__Host-refresh` is answered in the cookie.
    """
    if body:
        return TokenResponse.of(await SessionService(context).refresh(body.refresh_token.get_secret_value()))
    with cookie.deleted_if_refused():
        return cookie.answer(await SessionService(context).refresh(cookie.get_token()))


@router.post(
    "/logout",
    status_code=204,
    openapi_extra=COOKIE_PARAMETER | NO_TOKEN_NEEDED,
    responses=document(*BODY_ERRORS, *TOKEN_ERRORS, InvalidRefreshTokenError, ForeignOriginError),
)
async def log_out(
    context: ContextDep, caller: OptionalUser, cookie: RefreshCookieDep, body: RefreshRequest | None = None
) -> None:
    """End the session of the access token; where that has expired, of the refresh token in the body instead.

    Without either, the session of the cookie `__Host-refresh`. The cookie is deleted.
    """
    service = SessionService(context)
    if body:
        await service.log_out_by_refresh_token(body.refresh_token.get_secret_value())
    elif caller:
        await service.log_out(caller)
    elif (token := cookie.find_token()) is not None:
        with cookie.deleted_if_refused():
            await service.log_out_by_refresh_token(token)
    else:
        raise UnauthorizedException
    cookie.delete()


@router.get("/sessions", responses=document(*TOKEN_ERRORS))
async def list_sessions(uow: UnitOfWorkDep, caller: CurrentUser) -> SessionList:
    """The sessions that are logged in, the newest first."""
    sessions = await uow.sessions.list_live(caller.user_id)
    return SessionList(items=[SessionRecord.of(session, caller.session_id) for session in sessions])


@router.delete("/sessions", status_code=204, responses=document(*TOKEN_ERRORS))
async def revoke_other_sessions(context: ContextDep, caller: CurrentUser) -> None:
    """End all sessions but this one."""
    await SessionService(context).revoke_others(caller)


@router.delete(
    "/sessions/{session_id}",
    status_code=204,
    responses=document(*TOKEN_ERRORS, ValidationException, SessionNotFoundError),
)
async def revoke_session(session_id: UUID, context: ContextDep, caller: CurrentUser) -> None:
    """End one session, this one included. Its access token stops working at once."""
    await SessionService(context).revoke(caller, session_id)
