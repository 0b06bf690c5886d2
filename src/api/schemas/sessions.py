"""Logging in, and the tokens and sessions of people."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BaseModel, Field

from src.api.schemas.fields import EXAMPLE_JWT, Body, Code, JsonWebToken, Token
from src.core.exceptions import SecondFactorRequiredError
from src.core.fields import Email, Password
from src.core.users import EXAMPLE_ID, EXAMPLE_TIME
from src.db.models import SessionModel
from src.services.sessions import SecondFactorRequired, TokenPair

UseCookie = Annotated[
    bool,
    Field(
        description="Put the refresh token into the cookie `__Host-refresh` and not into the answer "
        "(where AUTH_REFRESH_COOKIE is on).",
        examples=[False],
    ),
]


class LogInRequest(Body):
    email: Email
    password: Password
    use_cookie: UseCookie = False


class SecondFactorLogInRequest(Body):
    second_factor_token: Annotated[Token, Field(description="From `details` of the 403 `SECOND_FACTOR_REQUIRED`.")]
    code: Annotated[Code, Field(description="Of the authenticator app, or a recovery code.")]
    use_cookie: UseCookie = False


class RefreshRequest(Body):
    refresh_token: JsonWebToken


def get_pair(outcome: TokenPair | SecondFactorRequired) -> TokenPair:
    """The tokens of a log-in. Raises `SecondFactorRequiredError`, with what its second step needs."""
    if isinstance(outcome, TokenPair):
        return outcome
    details = {
        "second_factor_token": outcome.token,
        "expires_in": int(outcome.expires_in.total_seconds()),
        "methods": ["totp", "recovery_code"],
    }
    raise SecondFactorRequiredError(details=details)


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
