"""`/auth`: log in, refresh, log out, and look after one's sessions."""

from typing import Annotated, NoReturn
from uuid import UUID

from fastapi import APIRouter, Depends, Form
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from src.api.dependencies import ClientDep, ClientsDep, CurrentUser, OptionalUser, SessionsDep
from src.api.errors import BODY_ERRORS, TOKEN_ERRORS, document
from src.api.schemas import (
    LogInRequest,
    LogOutRequest,
    RefreshRequest,
    ServiceTokenResponse,
    SessionList,
    SessionRecord,
    TokenGrant,
    TokenResponse,
)
from src.core.exceptions import (
    BadRequestException,
    InvalidClientError,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    InvalidScopeError,
    PayloadTooLargeException,
    SessionNotFoundError,
    UnauthorizedException,
    ValidationException,
)

router = APIRouter(prefix="/auth", tags=["Sessions"])


class _ClientCredentials(HTTPBasic):
    def make_not_authenticated_error(self) -> NoReturn:
        """What cannot be read is no better than a wrong secret (RFC 6749, section 5.2)."""
        raise InvalidClientError


_client_credentials = _ClientCredentials(
    scheme_name="ClientCredentials", description="The id and secret of a service.", auto_error=False
)


@router.post("/login", responses=document(*BODY_ERRORS, BadRequestException, InvalidCredentialsError))
async def log_in(body: LogInRequest, sessions: SessionsDep, client: ClientDep) -> TokenResponse:
    """Start a session with an e-mail address and a password.

    Wrong, unknown, unconfirmed and disabled are the same 401.
    """
    pair = await sessions.log_in(email=body.email, password=body.password.get_secret_value(), client=client)
    return TokenResponse.of(pair)


@router.post(
    "/token",
    # HTTP Basic is one of three ways: the framework would document it as the only one.
    openapi_extra={"security": [{}]},
    responses=document(
        PayloadTooLargeException,
        ValidationException,
        BadRequestException,
        InvalidCredentialsError,
        InvalidClientError,
        InvalidScopeError,
    ),
)
async def issue_token(
    form: Annotated[TokenGrant, Form()],
    basic: Annotated[HTTPBasicCredentials | None, Depends(_client_credentials)],
    sessions: SessionsDep,
    clients: ClientsDep,
    client: ClientDep,
) -> TokenResponse | ServiceTokenResponse:
    """The token endpoint of OAuth 2.0. `grant_type=password` is `/auth/login` as a form (RFC 6749, section 4.3), for
    the Authorize button and OAuth libraries; `username` is the e-mail address.

    `grant_type=client_credentials` (section 4.4) gives another service a token of its own, for all its scopes or for
    those in `scope`. It sends its id and secret as HTTP Basic, or in the form.
    """
    if form.grant_type == "password":
        email, password = form.person()
        return TokenResponse.of(await sessions.log_in(email=email, password=password, client=client))
    client_id, secret = form.service(basic)
    token = await clients.issue_token(client_id=client_id, client_secret=secret, scopes=form.scopes())
    return ServiceTokenResponse.of(token)


@router.post("/refresh", responses=document(*BODY_ERRORS, BadRequestException, InvalidRefreshTokenError))
async def refresh(body: RefreshRequest, sessions: SessionsDep, client: ClientDep) -> TokenResponse:
    """Exchange a refresh token for the next pair of tokens. Each refresh token works once.

    Sent again within a few seconds, it gets the same successor; later, it ends the session, since somebody else has it.
    """
    return TokenResponse.of(await sessions.refresh(body.refresh_token.get_secret_value(), client))


@router.post(
    "/logout",
    status_code=204,
    responses=document(*BODY_ERRORS, BadRequestException, *TOKEN_ERRORS, InvalidRefreshTokenError),
)
async def log_out(sessions: SessionsDep, caller: OptionalUser, body: LogOutRequest | None = None) -> None:
    """End the session of the access token; where that has expired, of the refresh token in the body instead."""
    if body:
        await sessions.log_out_by_refresh_token(body.refresh_token.get_secret_value())
    elif caller:
        await sessions.log_out(caller)
    else:
        raise UnauthorizedException


@router.get("/sessions", responses=document(*TOKEN_ERRORS))
async def list_sessions(sessions: SessionsDep, caller: CurrentUser) -> SessionList:
    """The sessions that are logged in, the newest first."""
    return SessionList(
        items=[SessionRecord.of(session, caller.session_id) for session in await sessions.list_sessions(caller)]
    )


@router.delete("/sessions", status_code=204, responses=document(*TOKEN_ERRORS))
async def revoke_other_sessions(sessions: SessionsDep, caller: CurrentUser) -> None:
    """End all sessions but this one."""
    await sessions.revoke_others(caller)


@router.delete(
    "/sessions/{session_id}",
    status_code=204,
    responses=document(*TOKEN_ERRORS, ValidationException, SessionNotFoundError),
)
async def revoke_session(session_id: UUID, sessions: SessionsDep, caller: CurrentUser) -> None:
    """End one session, this one included. Its access token stops working at once."""
    await sessions.revoke(caller, session_id)
