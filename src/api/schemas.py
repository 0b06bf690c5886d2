"""The shape of what travels. Whatever is refused here is a 422 that names the field."""

import unicodedata
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from src.core.addresses import normalize_email
from src.core.passwords import PASSWORD_MAX_LENGTH
from src.db.models import SessionModel
from src.services.sessions import TokenPair

EXAMPLE_ID = "01936f2e-5b1c-7d3a-9f10-2b6a1c0d4e5f"
EXAMPLE_JWT = "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiIuLi4ifQ.c2lnbmF0dXJl"
EXAMPLE_TOKEN = "kZ3v0c1Yw8Qm5rT7uX2bN6dF4hJ9sL0aE1gP3iR5oUc"


def _printable(text: str) -> str:
    # PostgreSQL refuses NUL; escape sequences would act on an administrator's terminal.
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must not contain control characters")
    return text


def _encodable(secret: SecretStr) -> SecretStr:
    # JSON can spell half of a surrogate pair, which no encoding can write. For `str` pydantic looks by itself.
    try:
        secret.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("contains characters that UTF-8 cannot encode") from None
    return secret


Email = Annotated[
    str,
    Field(max_length=320, examples=["ana@example.com"], json_schema_extra={"format": "email"}),
    AfterValidator(normalize_email),
]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_printable),
    Field(examples=["Ana"]),
]
# Any text that UTF-8 can hold, spaces and control characters included: it is never shown, only hashed.
Password = Annotated[
    SecretStr, AfterValidator(_encodable), Field(max_length=PASSWORD_MAX_LENGTH, examples=["correct-horse-battery"])
]
JsonWebToken = Annotated[
    SecretStr, AfterValidator(_encodable), Field(min_length=1, max_length=4096, examples=[EXAMPLE_JWT])
]
Token = Annotated[SecretStr, AfterValidator(_encodable), Field(min_length=1, max_length=512, examples=[EXAMPLE_TOKEN])]


class Body(BaseModel):
    """A request's body. A misspelt field is an error rather than silently lost."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SignUpRequest(Body):
    email: Email
    password: Password
    name: Name | None = None


class SignUpResponse(BaseModel):
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    activation_required: Annotated[bool, Field(description="Whether the link must be followed before a log-in works.")]
    activation_url: Annotated[
        str | None,
        Field(
            description="The link to follow; null when it was mailed, or when none is needed.",
            examples=[f"http://localhost:8000/activate?token={EXAMPLE_TOKEN}"],
        ),
    ]


class TokenRequest(Body):
    token: Token


class ActivationResponse(BaseModel):
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    is_active: Annotated[bool, Field(examples=[True])]


class EmailRequest(Body):
    email: Email


class Accepted(BaseModel):
    detail: str


class PasswordResetAccepted(Accepted):
    reset_url: Annotated[str | None, Field(description="Null, unless links are in the answers by explicit setting.")]


class EmailChangeAccepted(Accepted):
    email_change_url: Annotated[
        str | None, Field(description="Null, unless links are in the answers by explicit setting.")
    ]


class LogInRequest(Body):
    email: Email
    password: Password


class PasswordGrant(BaseModel):
    """The form of RFC 6749, section 4.3.2. Fields that it does not name are ignored, as section 3.2 asks."""

    model_config = ConfigDict(hide_input_in_errors=True)

    grant_type: Annotated[Literal["password"], Field(examples=["password"])]
    username: Email
    password: Password


class RefreshRequest(Body):
    refresh_token: JsonWebToken


class LogOutRequest(RefreshRequest):
    pass


class TokenResponse(BaseModel):
    """RFC 6749, section 5.1, and whose session it is."""

    access_token: Annotated[str, Field(examples=[EXAMPLE_JWT])]
    token_type: Annotated[Literal["bearer"], Field(examples=["bearer"])] = "bearer"
    expires_in: Annotated[int, Field(description="Seconds.", examples=[900])]
    refresh_token: Annotated[str, Field(examples=[EXAMPLE_JWT])]
    refresh_expires_in: Annotated[int, Field(description="Seconds.", examples=[1_209_600])]
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]

    @classmethod
    def of(cls, pair: TokenPair) -> Self:
        return cls(
            access_token=pair.access_token,
            expires_in=int(pair.expires_in.total_seconds()),
            refresh_token=pair.refresh_token,
            refresh_expires_in=int(pair.refresh_expires_in.total_seconds()),
            user_id=pair.user_id,
        )


class SessionRecord(BaseModel):
    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    created_at: datetime
    last_used_at: Annotated[datetime, Field(description="The log-in, or the last refresh.")]
    expires_at: Annotated[datetime, Field(description="When it ends if it is not refreshed.")]
    client_address: Annotated[str | None, Field(description="Where the log-in came from.", examples=["203.0.113.7"])]
    user_agent: Annotated[str | None, Field(examples=["Mozilla/5.0"])]
    current: Annotated[bool, Field(description="Whether it is the session of this request.")]

    @classmethod
    def of(cls, session: SessionModel, current_id: UUID) -> Self:
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


class PasswordChangeRequest(Body):
    current_password: Password
    new_password: Password


class PasswordResetRequest(Body):
    token: Token
    new_password: Password


class EmailChangeRequest(Body):
    new_email: Email
    current_password: Password


class DeleteAccountRequest(Body):
    current_password: Password


class PublicProfile(BaseModel):
    """What anyone may see of a user."""

    model_config = ConfigDict(from_attributes=True)

    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    name: Annotated[str | None, Field(examples=["Ana"])]
    is_active: bool
    created_at: datetime


class UserRecord(PublicProfile):
    """The whole record, as its owner and administrators see it. Never the hash."""

    email: Annotated[str, Field(examples=["ana@example.com"])]
    is_admin: bool
    activated_at: Annotated[datetime | None, Field(description="When the address was confirmed.")]
    last_login_at: datetime | None
    updated_at: datetime


class JsonWebKeySet(BaseModel):
    keys: list[dict[str, str]]


class AuthorizationServer(BaseModel):
    """RFC 8414, section 2."""

    issuer: str
    token_endpoint: str
    jwks_uri: str
    service_documentation: str
    response_types_supported: list[str]
    grant_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]


class Health(BaseModel):
    status: Annotated[Literal["ok"], Field(examples=["ok"])] = "ok"


class Readiness(Health):
    mail: Annotated[
        Literal["ok", "stuck"],
        Field(description="Whether mail waits for minutes, or could not be sent: see `python -m src outbox list`."),
    ]


class Problem(BaseModel):
    """Every error, of every kind, looks like this."""

    detail: Annotated[str, Field(description="A sentence for a person: what is wrong, and what to do.")]
    code: Annotated[str, Field(description="A stable name for programs.")]
    details: Annotated[
        dict[str, Any], Field(description="More for programs; a 422 lists `fields` as `{field, reason}`.")
    ]
