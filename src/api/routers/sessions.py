"""`/auth`: log in, refresh, log out, and look after one's sessions."""

from uuid import UUID

from fastapi import APIRouter

from src.api.dependencies import (
    IN_STEPS,
    NO_TOKEN_NEEDED,
    ContextDep,
    CurrentUser,
    OptionalSettingUpUser,
    SettingUpUser,
    UnitOfWorkDep,
)
from src.api.errors import BODY_ERRORS, LIMITED_BODY_ERRORS, TOKEN_ERRORS, document
from src.api.refresh_cookie import COOKIE_PARAMETER, RefreshCookieDep
from src.api.schemas.second_factor import ReauthenticateRequest
from src.api.schemas.sessions import (
    LogInRequest,
    RefreshRequest,
    SecondFactorLogInRequest,
    SessionList,
    SessionRecord,
    TokenResponse,
    get_pair,
)
from src.core.exceptions import (
    ForeignOriginError,
    InvalidCodeError,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    InvalidSecondFactorTokenError,
    SecondFactorNotSetError,
    SecondFactorRequiredError,
    SessionNotFoundError,
    UnauthorizedException,
    ValidationException,
    WrongCodeError,
    WrongPasswordError,
)
from src.services import SessionService

router = APIRouter(prefix="/auth", tags=["Sessions"])


@router.post(
    "/login",
    dependencies=[IN_STEPS],
    responses=document(*LIMITED_BODY_ERRORS, InvalidCredentialsError, SecondFactorRequiredError, ForeignOriginError),
)
async def log_in(body: LogInRequest, context: ContextDep, cookie: RefreshCookieDep) -> TokenResponse:
    """Start a session with an e-mail address and a password.

    Wrong, unknown, unconfirmed and disabled are the same 401. `use_cookie` is for front ends in browsers.

    An account with a second factor gets 403 `SECOND_FACTOR_REQUIRED`: ask for a code, and send it to
    `/auth/login/second-factor` with the `second_factor_token` in `details`, within `expires_in` seconds.
    """
    if body.use_cookie:
        cookie.check_wanted()
    pair = get_pair(await SessionService(context).log_in(email=body.email, password=body.password.get_secret_value()))
    return cookie.answer(pair) if body.use_cookie else TokenResponse.of(pair)


@router.post(
    "/login/second-factor",
    responses=document(*LIMITED_BODY_ERRORS, InvalidCodeError, InvalidSecondFactorTokenError, ForeignOriginError),
)
async def log_in_with_second_factor(
    body: SecondFactorLogInRequest, context: ContextDep, cookie: RefreshCookieDep
) -> TokenResponse:
    """Start the session of a log-in that was answered with `SECOND_FACTOR_REQUIRED`.

    The code is the authenticator app's, or a recovery code; each works once. After 401 `INVALID_CODE` another may be
    sent with the same token; after 401 `INVALID_SECOND_FACTOR_TOKEN`, log in with the password again.
    """
    if body.use_cookie:
        cookie.check_wanted()
    token, code = body.second_factor_token.get_secret_value(), body.code.get_secret_value()
    pair = await SessionService(context).finish_log_in(token=token, code=code)
    return cookie.answer(pair) if body.use_cookie else TokenResponse.of(pair)


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
    context: ContextDep, caller: OptionalSettingUpUser, cookie: RefreshCookieDep, body: RefreshRequest | None = None
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


@router.post(
    "/reauthenticate",
    status_code=204,
    responses=document(
        *LIMITED_BODY_ERRORS,
        *TOKEN_ERRORS,
        WrongPasswordError,
        WrongCodeError,
        SecondFactorRequiredError,
        SecondFactorNotSetError,
    ),
)
async def reauthenticate(body: ReauthenticateRequest, context: ContextDep, caller: SettingUpUser) -> None:
    """Prove again who you are, by a code of the second factor, or by the password where none is set, before what
    answers 403 `REAUTHENTICATION_REQUIRED`. It holds for this session, for fifteen minutes
    (`AUTH_REAUTHENTICATION_SECONDS`).

    Access tokens tell of it (`auth_time`, `amr`) from the next refresh on.
    """
    await SessionService(context).reauthenticate(
        caller,
        password=body.password.get_secret_value() if body.password is not None else None,
        code=body.code.get_secret_value() if body.code else None,
    )


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
