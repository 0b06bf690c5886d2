"""`/auth/token`, `/auth/revoke` and `/auth/introspect`: OAuth 2.0 as its libraries speak it."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response, Security
from fastapi.openapi.models import HTTPBase as HTTPBaseModel
from fastapi.security.base import SecurityBase

from src.api.dependencies import (
    IN_STEPS,
    BearerToken,
    ContextDep,
    SessionDep,
    refuse_other_sites,
    require_scope,
)
from src.api.errors import document_oauth
from src.api.schemas.oauth import Introspection, ServiceTokenResponse, TokenForm, TokenGrant
from src.api.schemas.sessions import TokenResponse, get_pair
from src.core.callers import HttpCaller, Scope
from src.core.exceptions import (
    BadRequestException,
    ForbiddenException,
    ForeignOriginError,
    InsufficientScopeError,
    InvalidAccessTokenError,
    InvalidClientError,
    InvalidCodeError,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    InvalidScopeError,
    InvalidTargetError,
    SecondFactorRequiredError,
    TooManyRequestsException,
    UnsupportedGrantTypeError,
    ValidationException,
)
from src.services import ClientService, SessionService


async def _refuse_repetition(request: Request) -> None:
    """RFC 6749, section 3.2. Of two values the framework would take the last, and whoever looked at the request before
    us perhaps the first. Only `resource` may be repeated (RFC 8707, section 2)."""
    names = [name for name, _ in (await request.form()).multi_items() if name != "resource"]
    if len(names) > len(set(names)):
        raise BadRequestException("A parameter was sent more than once.")


router = APIRouter(
    prefix="/auth", tags=["OAuth 2.0"], dependencies=[Depends(refuse_other_sites), Depends(_refuse_repetition)]
)


class _BasicHeader(SecurityBase):
    """The credentials of HTTP Basic, still encoded: where a client need not prove who it is, whatever it sends there is
    never read. Libraries send an id of their own, without a secret."""

    def __init__(self) -> None:
        self.scheme_name = "ClientCredentials"
        self.model = HTTPBaseModel(scheme="basic", description="The id and secret of a service.")

    async def __call__(self, request: Request) -> str | None:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        return credentials.strip() if scheme.lower() == "basic" else None


BasicHeader = Annotated[str | None, Depends(_BasicHeader())]


class _BearerUnlessBasic(BearerToken):
    async def __call__(self, request: Request, session: SessionDep) -> HttpCaller | None:
        if request.headers.get("authorization", "").lower().startswith("basic"):
            return None
        return await super().__call__(request, session)


# HTTP Basic is one of several ways: the framework would document it as the only one.
_OR_IN_THE_FORM: dict[str, Any] = {"security": [{}]}


@router.post(
    "/token",
    dependencies=[IN_STEPS],
    openapi_extra=_OR_IN_THE_FORM,
    responses=document_oauth(
        ValidationException,
        UnsupportedGrantTypeError,
        InvalidCredentialsError,
        SecondFactorRequiredError,
        InvalidCodeError,
        InvalidRefreshTokenError,
        InvalidScopeError,
        InvalidTargetError,
        InvalidClientError,
        ForeignOriginError,
        TooManyRequestsException,
        defines_schema=True,
    ),
)
async def issue_token(
    form: Annotated[TokenGrant, Form()], basic: BasicHeader, context: ContextDep
) -> TokenResponse | ServiceTokenResponse:
    """The token endpoint of OAuth 2.0 (RFC 6749), for the Authorize button and OAuth libraries.

    `password` is `/auth/login` as a form; `username` is the e-mail address, and `otp` the code of an account that has a
    second factor. `refresh_token` is `/auth/refresh` as one.
    Neither has scopes, and neither needs a client: a `client_id` is ignored.

    `client_credentials` gives another service a token of its own, for all its scopes or for those in `scope`. It sends
    its id and secret as HTTP Basic, or in the form.

    With `resource`, the access token is for that resource alone (RFC 8707), and our own routes refuse it.
    """
    resources = form.resources()
    match form.grant_type:
        case "password":
            email, password = form.person()
            outcome = await SessionService(context).log_in(
                email=email, password=password, code=form.code(), resources=resources
            )
            return TokenResponse.of(get_pair(outcome))
        case "refresh_token":
            return TokenResponse.of(await SessionService(context).refresh(form.renewal(), resources=resources))
        case "client_credentials":
            client_id, secret = form.client(basic)
            token = await ClientService(context).issue_token(
                client_id=client_id, client_secret=secret, scopes=form.scopes(), resources=resources
            )
            return ServiceTokenResponse.of(token)
    raise UnsupportedGrantTypeError


@router.post(
    "/revoke",
    response_class=Response,
    openapi_extra=_OR_IN_THE_FORM,
    responses=document_oauth(ValidationException, InvalidClientError, ForeignOriginError, TooManyRequestsException),
)
async def revoke_token(form: Annotated[TokenForm, Form()], basic: BasicHeader, context: ContextDep) -> Response:
    """End the session of a refresh token, or of an access token of ours (RFC 7009).

    Whoever holds the token may do it. Credentials of a client are not needed, but must be right if they are sent. A
    token that is not known, or has ended, is a success too; so is one of a service, which stays good until it expires.
    """
    if client := form.find_client(basic):
        client_id, secret = client
        await ClientService(context).authenticate(client_id=client_id, client_secret=secret)
    await SessionService(context).revoke_token(form.token.get_secret_value())
    return Response()


@router.post(
    "/introspect",
    response_model_exclude_none=True,
    openapi_extra=_OR_IN_THE_FORM,
    responses=document_oauth(
        ValidationException,
        InvalidClientError,
        InvalidAccessTokenError,
        ForbiddenException,
        ForeignOriginError,
        InsufficientScopeError,
        TooManyRequestsException,
    ),
)
async def introspect_token(
    form: Annotated[TokenForm, Form()],
    basic: BasicHeader,
    bearer: Annotated[HttpCaller | None, Security(_BearerUnlessBasic(), scopes=[Scope.TOKENS_INTROSPECT])],
    context: ContextDep,
) -> Introspection:
    """Whether a token is active right now, and what it says (RFC 7662): for services with the scope
    `tokens:introspect`.

    They send their id and secret, or a bearer token, which costs us less.
    """
    caller = bearer
    if caller is None:
        client_id, secret = form.client(basic)
        caller = await ClientService(context).authenticate(client_id=client_id, client_secret=secret)
    await require_scope(context, caller, Scope.TOKENS_INTROSPECT)
    return Introspection.of(await SessionService(context).introspect(form.token.get_secret_value()))
