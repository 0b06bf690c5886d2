"""Logging in, and the tokens of people and services."""

from datetime import datetime
from typing import Annotated, Literal, Self
from urllib.parse import unquote_plus
from uuid import UUID

from fastapi.security import HTTPBasicCredentials
from pydantic import BaseModel, ConfigDict, Field

from src.api.schemas.fields import EXAMPLE_JWT, EXAMPLE_TOKEN, Body, JsonWebToken, Token
from src.core.addresses import normalize_email
from src.core.exceptions import InvalidClientError, ValidationException
from src.core.fields import Email, Password
from src.core.users import EXAMPLE_ID, EXAMPLE_TIME
from src.db.models import SessionModel
from src.services.clients import ServiceToken
from src.services.sessions import TokenPair


class LogInRequest(Body):
    email: Email
    password: Password
    use_cookie: Annotated[
        bool,
        Field(
            description="Put the refresh token into the cookie `__Host-refresh` and not into the answer "
            "(where AUTH_REFRESH_COOKIE is on).",
            examples=[False],
        ),
    ] = False


class TokenGrant(BaseModel):
    """The form of RFC 6749, sections 4.3.2 and 4.4.2. Fields that it does not name are ignored, as section 3.2 asks."""

    model_config = ConfigDict(hide_input_in_errors=True)

    grant_type: Annotated[Literal["password", "client_credentials"], Field(examples=["password"])]
    username: Annotated[str | None, Field(max_length=320, examples=["ana@example.com"])] = None
    password: Password | None = None
    client_id: Annotated[str | None, Field(max_length=100, examples=[EXAMPLE_ID])] = None
    client_secret: Annotated[Token | None, Field(examples=[EXAMPLE_TOKEN])] = None
    scope: Annotated[str | None, Field(max_length=200, examples=["users:read"])] = None

    def person(self) -> tuple[str, str]:
        """The address and the password. Raises `ValidationException` if one is missing, or the first is none."""
        if self.username is None or self.password is None:
            raise ValidationException.for_field("username" if self.username is None else "password", "is required")
        try:
            return normalize_email(self.username), self.password.get_secret_value()
        except ValueError as error:
            raise ValidationException.for_field("username", str(error)) from None

    def service(self, basic: HTTPBasicCredentials | None) -> tuple[str, str]:
        """The id and the secret of a client, by HTTP Basic or from the form, but not by both (RFC 6749, section 2.3).

        Raises `ValidationException` for both or neither, `InvalidClientError` for two who are not the same.
        """
        if basic and self.client_secret:
            raise ValidationException.for_field("client_secret", "must not be sent when HTTP Basic is")
        if basic is None and (self.client_id is None or self.client_secret is None):
            missing = "client_id" if self.client_id is None else "client_secret"
            raise ValidationException.for_field(missing, "is required, unless HTTP Basic is sent")
        if basic:
            client_id = unquote_plus(basic.username)
            if self.client_id not in (None, client_id):
                raise InvalidClientError
            return client_id, unquote_plus(basic.password)
        return self.client_id or "", self.client_secret.get_secret_value() if self.client_secret else ""

    def scopes(self) -> set[str] | None:
        """Those that are asked for; `None` for all that the client has."""
        return set(self.scope.split()) if self.scope and self.scope.strip() else None


class RefreshRequest(Body):
    refresh_token: JsonWebToken


class TokenResponse(BaseModel):
    """RFC 6749, section 5.1, and whose session it is."""

    access_token: Annotated[str, Field(examples=[EXAMPLE_JWT])]
    token_type: Annotated[Literal["bearer"], Field(examples=["bearer"])] = "bearer"
    expires_in: Annotated[int, Field(description="Seconds.", examples=[900])]
    refresh_token: Annotated[
        str | None, Field(description="Null where it is in the cookie: see `use_cookie`.", examples=[EXAMPLE_JWT])
    ]
    refresh_expires_in: Annotated[int, Field(description="Seconds.", examples=[1_209_600])]
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]

    @classmethod
    def of(cls, pair: TokenPair, *, in_cookie: bool = False) -> Self:
        return cls(
            access_token=pair.access_token,
            expires_in=int(pair.expires_in.total_seconds()),
            refresh_token=None if in_cookie else pair.refresh_token,
            refresh_expires_in=int(pair.refresh_expires_in.total_seconds()),
            user_id=pair.user_id,
        )


class ServiceTokenResponse(BaseModel):
    """RFC 6749, section 5.1. There is no refresh token: the credentials are at hand."""

    access_token: Annotated[str, Field(examples=[EXAMPLE_JWT])]
    token_type: Annotated[Literal["bearer"], Field(examples=["bearer"])] = "bearer"
    expires_in: Annotated[int, Field(description="Seconds.", examples=[900])]
    scope: Annotated[str, Field(examples=["users:read"])]

    @classmethod
    def of(cls, token: ServiceToken) -> Self:
        return cls(
            access_token=token.access_token,
            expires_in=int(token.expires_in.total_seconds()),
            scope=" ".join(token.scopes),
        )


class SessionRecord(BaseModel):
    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    created_at: Annotated[datetime, Field(examples=[EXAMPLE_TIME])]
    last_used_at: Annotated[datetime, Field(description="The log-in, or the last refresh.", examples=[EXAMPLE_TIME])]
    expires_at: Annotated[datetime, Field(description="When it ends if it is not refreshed.", examples=[EXAMPLE_TIME])]
    client_address: Annotated[str | None, Field(description="Where the log-in came from.", examples=["203.0.113.7"])]
    user_agent: Annotated[str | None, Field(examples=["Mozilla/5.0"])]
    current: Annotated[bool, Field(description="Whether it is the session of this request.", examples=[True])]

    @classmethod
    def of(cls, session: SessionModel, current_id: UUID | None) -> Self:
        return cls(
            id=session.id,
            created_at=session.created_at,
            last_used_at=session.last_used_at,
            expires_at=min(session.idle_expires_at, session.expires_at),
            client_address=session.client_address,
            user_agent=session.user_agent,
            current=session.id == current_id,
        )


class SessionList(BaseModel):
    items: list[SessionRecord]
