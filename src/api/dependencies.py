"""What routes are given. `db` is the one way to the database: overriding `db.session_dependency` moves a whole app.

All are `async def`: FastAPI runs a plain function in a thread, which costs more than most of these do. And they are few
and flat: it goes through all that a dependency needs anew wherever the dependency is named.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from ipaddress import ip_address
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.openapi.models import OAuth2 as OAuth2Model
from fastapi.openapi.models import OAuthFlowClientCredentials, OAuthFlowPassword, OAuthFlows
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.callers import AuthenticatedClient, AuthenticatedUser, HttpCaller, Scope, may, require
from src.core.exceptions import (
    AppException,
    ForbiddenException,
    ForeignOriginError,
    InvalidAccessTokenError,
    SecondFactorNeededError,
    TooManyRequestsException,
    UnauthorizedException,
)
from src.core.origin import RequestOrigin
from src.core.settings import get_settings
from src.db.database import AsyncDatabaseManager
from src.db.models import EventKind
from src.db.unit_of_work import UnitOfWork
from src.email import SendsEmail
from src.services import Context, Runtime

db = AsyncDatabaseManager.from_settings(get_settings())

STEPS_OF_A_REFUSAL = 10

# Function scope closes the session before the answer is sent. With the default one, what fails after the `yield` would
# fail behind a 2xx that the client has already seen.
SessionDep = Annotated[AsyncSession, Depends(db.session_dependency, scope="function")]


async def get_unit_of_work(request: Request, session: SessionDep) -> UnitOfWork:
    return UnitOfWork(session, request.is_disconnected)


UnitOfWorkDep = Annotated[UnitOfWork, Depends(get_unit_of_work)]


def runtime_of(app: FastAPI) -> Runtime:
    """The only thing that an application keeps in its untyped `state`."""
    runtime: Runtime = app.state.runtime
    return runtime


async def get_runtime(request: Request) -> Runtime:
    return runtime_of(request.app)


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]


async def get_email_utils(runtime: RuntimeDep) -> SendsEmail | None:
    """What carries emails: SMTP, where SMTP_HOST is set. `None` means that links travel in the answers. Override it to
    wire in another."""
    return runtime.email


async def get_context(
    request: Request,
    uow: UnitOfWorkDep,
    runtime: RuntimeDep,
    email: Annotated[SendsEmail | None, Depends(get_email_utils)],
) -> Context:
    return Context.new(runtime, uow, email=email, origin=origin_of(request))


ContextDep = Annotated[Context, Depends(get_context)]


async def _answer_in_steps(runtime: RuntimeDep) -> AsyncGenerator[None, None]:
    """Wait until a whole number of steps has passed since the request began.

    Where an address is known, the same statements find rows, lock them and check keys that refer to them. Over some
    hundred requests this quarter of a millisecond would tell. What it takes is rounded up, so that both take as long.

    Who is refused for asking too often waits longer: clients that go on without a pause would take the processor from
    those whose passwords are hashed.
    """
    step, start = runtime.answer_step_seconds, time.perf_counter()
    try:
        yield
    except AppException as refusal:  # no other: who is cancelled by a stop has no time to wait
        is_slowed = isinstance(refusal, TooManyRequestsException)
        await _wait_for_step(step * STEPS_OF_A_REFUSAL if is_slowed else step, start)
        raise
    await _wait_for_step(step, start)


async def _wait_for_step(step: float, start: float) -> None:
    if step:
        # The event loop's timers count in milliseconds: some more at random, or their rounding would tell.
        jitter = random.uniform(0, step / 10)  # noqa: S311 - not a secret
        await asyncio.sleep(step - (time.perf_counter() - start) % step + jitter)


# For routes that must not tell whether an address has an account.
IN_STEPS = Depends(_answer_in_steps, scope="function")


def origin_of(request: Request) -> RequestOrigin:
    """Where the request comes from; behind a proxy, as uvicorn's `--forwarded-allow-ips` lets the proxy say."""
    host = request.client.host if request.client else ""
    try:
        address = str(ip_address(host.partition("%")[0]))  # the zone of an IPv6 address may be any text
    except ValueError:  # a unix socket, or what somebody wrote into X-Forwarded-For
        address = None
    user_agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))
    return RequestOrigin(address, user_agent[:255] or None)


async def refuse_other_sites(request: Request, runtime: RuntimeDep) -> None:
    """For forms, which browsers post to other sites without a preflight. Any site could make its visitors guess wrong
    passwords of an address, and so lock its owner out, if they are one of them. Raises `ForeignOriginError`."""
    is_elsewhere = request.headers.get("sec-fetch-site") == "cross-site"
    if is_elsewhere and {request.headers.get("origin"), "*"}.isdisjoint(runtime.settings.cors_allowed_origins):
        raise ForeignOriginError("This comes from a page of another site that is not in CORS_ALLOWED_ORIGINS.")


_SCOPES = {
    Scope.USERS_READ: "Read every user.",
    Scope.USERS_WRITE: "Invite, change and remove users who are no administrators.",
    Scope.AUDIT_READ: "Read the audit trail.",
    Scope.TOKENS_INTROSPECT: "Ask whether a token is active, and what it says.",
}


_TOKEN_URL = "/auth/token"


class BearerToken(SecurityBase):
    """Who is asking; nobody, without a token. One that is not good is a 401, never silently a stranger (RFC 6750).

    Where AUTH_ADMINS_NEED_SECOND_FACTOR is on, an administrator without one is refused, but where `is_for_set_up`.
    """

    def __init__(self, *, is_for_set_up: bool = False) -> None:
        self._is_for_set_up = is_for_set_up
        self.scheme_name = "OAuth2"
        self.model = OAuth2Model(
            flows=OAuthFlows(
                password=OAuthFlowPassword(tokenUrl=_TOKEN_URL),
                clientCredentials=OAuthFlowClientCredentials(tokenUrl=_TOKEN_URL, scopes={**_SCOPES}),
            )
        )

    async def __call__(self, request: Request, session: SessionDep) -> HttpCaller | None:
        header = request.headers.get("authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidAccessTokenError
        claims, uow = runtime_of(request.app).signer.read_access(token), UnitOfWork(session)
        caller: HttpCaller | None
        if isinstance(claims, AuthenticatedClient):
            caller = claims if await uow.clients.is_live(claims.client_id) else None
        else:
            caller = await uow.sessions.find_caller(claims.user_id, claims.session_id)
        if caller is None:
            raise InvalidAccessTokenError
        request.state.caller = caller  # for the log
        if not self._is_for_set_up and await self._lacks_second_factor(caller, request, uow):
            raise SecondFactorNeededError
        return caller

    async def _lacks_second_factor(self, caller: HttpCaller, request: Request, uow: UnitOfWork) -> bool:
        is_needed = runtime_of(request.app).settings.auth_admins_need_second_factor
        if not is_needed or isinstance(caller, AuthenticatedClient) or not caller.is_admin:
            return False
        return not await uow.second_factors.is_set(caller.user_id)


# For `openapi_extra` of routes that take a token, but need none.
NO_TOKEN_NEEDED: dict[str, Any] = {"security": [{}]}

OptionalCaller = Annotated[HttpCaller | None, Depends(BearerToken())]


async def get_caller(caller: OptionalCaller) -> HttpCaller:
    if caller is None:
        raise UnauthorizedException
    return caller


async def get_permitted_caller(
    request: Request,
    session: SessionDep,
    caller: Annotated[HttpCaller, Depends(get_caller)],
    needed: SecurityScopes,
) -> HttpCaller:
    """An administrator, or a service with the scopes that the route names. The refusal of others leaves an event."""
    for scope in map(Scope, needed.scopes):
        if not may(caller, scope):  # only a refusal needs a context, so reads stay fast
            uow, origin = UnitOfWork(session), origin_of(request)
            context = Context.new(runtime_of(request.app), uow, email=None, origin=origin)
            await require_scope(context, caller, scope)
    return caller


async def require_scope(context: Context, caller: HttpCaller, scope: Scope) -> None:
    """As `require`, and the refusal leaves an event."""
    if not may(caller, scope):
        async with context.recording(EventKind.ACCESS_REFUSAL, by=caller):
            require(caller, scope)


UsersReader = Annotated[HttpCaller, Security(get_permitted_caller, scopes=[Scope.USERS_READ])]
AuditReader = Annotated[HttpCaller, Security(get_permitted_caller, scopes=[Scope.AUDIT_READ])]
# The scope is named for the API document alone. `UserService` requires it, and records it when it is missing.
UncheckedUsersWriter = Annotated[HttpCaller, Security(get_caller, scopes=[Scope.USERS_WRITE])]


async def get_optional_user(caller: OptionalCaller) -> AuthenticatedUser | None:
    """A person, or nobody: what is personal is refused to a service."""
    if isinstance(caller, AuthenticatedClient):
        raise ForbiddenException("This is for people: send the access token of somebody who has logged in.")
    return caller


OptionalUser = Annotated[AuthenticatedUser | None, Depends(get_optional_user)]


async def get_current_user(user: OptionalUser) -> AuthenticatedUser:
    if user is None:
        raise UnauthorizedException
    return user


CurrentUser = Annotated[AuthenticatedUser, Depends(get_current_user)]


async def get_optional_setting_up_user(
    caller: Annotated[HttpCaller | None, Depends(BearerToken(is_for_set_up=True))],
) -> AuthenticatedUser | None:
    return await get_optional_user(caller)


OptionalSettingUpUser = Annotated[AuthenticatedUser | None, Depends(get_optional_setting_up_user)]


async def get_setting_up_user(user: OptionalSettingUpUser) -> AuthenticatedUser:
    return await get_current_user(user)


# Somebody who may still have to set up a second factor: for what they need for that, and to log out.
SettingUpUser = Annotated[AuthenticatedUser, Depends(get_setting_up_user)]
