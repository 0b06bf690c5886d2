"""The shape of what travels. Whatever is refused here is a 422 that names the field."""

import base64
import unicodedata
from datetime import datetime
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import unquote_plus
from uuid import UUID

from fastapi.security import HTTPBasicCredentials
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
)

from src.core.addresses import normalize_email
from src.core.exceptions import InvalidClientError, ValidationException
from src.core.passwords import PASSWORD_MAX_LENGTH
from src.db.models import EventKind, EventOutcome, SessionModel
from src.db.repositories import Order
from src.services.clients import ServiceToken
from src.services.sessions import TokenPair
from src.services.users import UserChanges

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


SearchText = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Limit = Annotated[int, Field(ge=1, le=100)]


def _read_cursor(cursor: object) -> UUID:
    try:
        id_ = UUID(bytes=base64.b64decode(f"{cursor}==", altchars=b"-_", validate=True))
    except ValueError:
        raise ValueError(_CURSOR_REASON) from None
    if write_cursor(id_) != cursor:  # a cursor has one spelling
        raise ValueError(_CURSOR_REASON)
    return id_


def write_cursor(id_: UUID) -> str:
    """Where a page ended. Callers hand it back as it is; what it holds is ours to change."""
    return base64.urlsafe_b64encode(id_.bytes).rstrip(b"=").decode()


_CURSOR_REASON = "is not a cursor: send back next_cursor of the page before, as it was"
Cursor = Annotated[
    UUID,
    BeforeValidator(_read_cursor),
    WithJsonSchema({"type": "string", "description": "`next_cursor` of the page before."}),
]
NextCursor = Annotated[str | None, Field(description="The `cursor` of the next page; null on the last one.")]


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


class TokenGrant(BaseModel):
    """The form of RFC 6749, sections 4.3.2 and 4.4.2. Fields that it does not name are ignored, as section 3.2 asks."""

    model_config = ConfigDict(hide_input_in_errors=True)

    grant_type: Annotated[Literal["password", "client_credentials"], Field(examples=["password"])]
    username: Email | None = None
    password: Password | None = None
    client_id: Annotated[str | None, Field(max_length=100, examples=[EXAMPLE_ID])] = None
    client_secret: Annotated[Token | None, Field(examples=[EXAMPLE_TOKEN])] = None
    scope: Annotated[str | None, Field(max_length=200, examples=["users:read"])] = None

    def person(self) -> tuple[str, str]:
        """The address and the password. Raises `ValidationException` if one is missing."""
        if self.username is None or self.password is None:
            raise ValidationException.for_field("username" if self.username is None else "password", "is required")
        return self.username, self.password.get_secret_value()

    def service(self, basic: HTTPBasicCredentials | None) -> tuple[UUID, str]:
        """The id and the secret of a client, by HTTP Basic or from the form, but not by both (RFC 6749, section 2.3).

        Raises `ValidationException` for both or neither, and `InvalidClientError` for an id that can be nobody's.
        """
        if basic and self.client_secret:
            raise ValidationException.for_field("client_secret", "must not be sent when HTTP Basic is")
        if basic is None and (self.client_id is None or self.client_secret is None):
            missing = "client_id" if self.client_id is None else "client_secret"
            raise ValidationException.for_field(missing, "is required, unless HTTP Basic is sent")
        id_, secret = self.client_id or "", self.client_secret.get_secret_value() if self.client_secret else ""
        if basic:
            id_, secret = unquote_plus(basic.username), unquote_plus(basic.password)
        try:
            return UUID(id_), secret
        except ValueError:
            raise InvalidClientError from None

    def scopes(self) -> set[str] | None:
        """Those that are asked for; `None` for all that the client has."""
        return set(self.scope.split()) if self.scope and self.scope.strip() else None


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
    created_at: datetime
    last_used_at: Annotated[datetime, Field(description="The log-in, or the last refresh.")]
    expires_at: Annotated[datetime, Field(description="When it ends if it is not refreshed.")]
    client_address: Annotated[str | None, Field(description="Where the log-in came from.", examples=["203.0.113.7"])]
    user_agent: Annotated[str | None, Field(examples=["Mozilla/5.0"])]
    current: Annotated[bool, Field(description="Whether it is the session of this request.")]

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


class UserPage(BaseModel):
    items: list[UserRecord]
    next_cursor: NextCursor


class CountedUserPage(UserPage):
    count: Annotated[int, Field(description="How many users match, on all pages.", examples=[1])]


class UserQuery(BaseModel):
    """Which users, and in what order. All filters that are given must hold."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    email: Annotated[Email | None, Field(description="Exactly this address.")] = None
    name: Annotated[SearchText | None, Field(description="A part of the name, in any case.")] = None
    is_active: bool | None = None
    is_admin: bool | None = None
    pending: Annotated[
        bool, Field(description="Sign-ups and invitations that wait to be confirmed, instead of accounts.")
    ] = False
    order: Order = "oldest"
    limit: Limit = 50
    cursor: Cursor | None = None
    count: Annotated[bool, Field(description="Also count all users that match, which takes its time.")] = False


class InviteRequest(Body):
    email: Email
    name: Name | None = None
    is_admin: Annotated[bool, Field(examples=[False])] = False


class InvitationResponse(BaseModel):
    user_id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    invitation_url: Annotated[
        str | None,
        Field(
            description="The link to follow; null when it was mailed.",
            examples=[f"http://localhost:8000/invitation?token={EXAMPLE_TOKEN}"],
        ),
    ]


class AcceptInvitationRequest(Body):
    token: Token
    password: Password


class UserPatch(Body):
    """What is left out stays as it is."""

    name: Name | None = None
    is_active: Annotated[bool, Field(examples=[True])] = True
    is_admin: Annotated[bool, Field(examples=[False])] = False

    def changes(self) -> UserChanges:
        """Only what was sent: the defaults above are nobody's wish."""
        return cast("UserChanges", self.model_dump(exclude_unset=True))


class EventQuery(BaseModel):
    """Which events. All filters that are given must hold."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    limit: Limit = 50
    cursor: Cursor | None = None
    kind: EventKind | None = None
    outcome: EventOutcome | None = None
    since: Annotated[AwareDatetime | None, Field(description="At this moment or later.")] = None
    until: Annotated[AwareDatetime | None, Field(description="Before this moment.")] = None


class AuditEventQuery(EventQuery):
    user_id: Annotated[UUID | None, Field(description="On whom.")] = None
    actor_id: Annotated[UUID | None, Field(description="Who did it.")] = None
    client_id: Annotated[UUID | None, Field(description="The service that did it, or that it was done to.")] = None


class OwnEvent(BaseModel):
    """What happened to one's account."""

    model_config = ConfigDict(from_attributes=True)

    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    kind: Annotated[str, Field(examples=["log_in"])]
    outcome: Annotated[str, Field(description="`success` or `failure`.", examples=["success"])]
    reason: Annotated[str | None, Field(description="Of a failure: the code that the caller was told.")]
    changes: Annotated[str | None, Field(description="Of an update: what was changed.", examples=["is_active=false"])]
    origin: Annotated[
        str | None,
        Field(description="Where it came from, unless somebody else did it.", examples=["203.0.113.7"]),
    ]
    created_at: datetime


class AuditEvent(OwnEvent):
    """Who did what, or was refused it, on whom, from where."""

    user_id: Annotated[UUID | None, Field(description="On whom; null once they are deleted.")]
    actor_id: Annotated[UUID | None, Field(description="Who; null if they had not proved it, or are deleted.")]
    client_id: Annotated[UUID | None, Field(description="The service that did it, or that it was done to.")]
    address_hash: Annotated[
        str | None, Field(description="Of a typed address that nobody has: the same hash is the same address.")
    ]


class OwnEventPage(BaseModel):
    items: list[OwnEvent]
    next_cursor: NextCursor


class AuditEventPage(BaseModel):
    items: list[AuditEvent]
    next_cursor: NextCursor


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
    scopes_supported: list[str]


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
