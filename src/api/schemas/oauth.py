"""The forms of OAuth 2.0 and what answers them. Parameters that a form does not name are ignored (RFC 6749, 3.2)."""

from base64 import b64decode
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote_plus

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from src.api.schemas.fields import EXAMPLE_JWT, EXAMPLE_TOKEN, Code, JsonWebToken, Token
from src.core.addresses import normalize_email
from src.core.callers import Scope
from src.core.exceptions import InvalidClientError, InvalidScopeError, ValidationException
from src.core.fields import Password
from src.core.tokens import FIRST_PARTY_CLIENT_ID
from src.core.users import EXAMPLE_ID
from src.services.clients import ServiceToken

GRANT_TYPES = ("password", "refresh_token", "client_credentials")


class ClientForm(BaseModel):
    """What each form may hold of a client that proves who it is (RFC 6749, section 2.3.1)."""

    model_config = ConfigDict(hide_input_in_errors=True)

    client_id: Annotated[str | None, Field(max_length=100, examples=[EXAMPLE_ID])] = None
    client_secret: Annotated[Token | None, Field(examples=[EXAMPLE_TOKEN])] = None

    def client(self, basic: str | None) -> tuple[str, str]:
        """The id and the secret of a client, by HTTP Basic or from the form, but not by both (RFC 6749, section 2.3).

        Raises `ValidationException` for both, and `InvalidClientError` for neither, for a header that cannot be read,
        and for two who are not the same.
        """
        if basic is None:
            return self.client_id or _require_client(None), _require_client(self.client_secret)
        if self.client_secret:
            raise ValidationException.for_field("client_secret", "must not be sent when HTTP Basic is")
        client_id, secret = _read_basic(basic)
        if self.client_id not in (None, client_id):
            raise InvalidClientError
        return client_id, secret

    def find_client(self, basic: str | None) -> tuple[str, str] | None:
        """As `client`, for what public clients may ask too: they have no secret, or send an empty one."""
        if self.client_secret is None and (basic is None or not _read_basic(basic)[1]):
            return None
        return self.client(basic)


def _require_client(secret: SecretStr | None) -> str:
    if secret is None:
        raise InvalidClientError("Send client_id and client_secret, as HTTP Basic or in the form.")
    return secret.get_secret_value()


def _read_basic(credentials: str) -> tuple[str, str]:
    try:
        client_id, colon, secret = b64decode(credentials, validate=True).decode().partition(":")
    except ValueError:
        raise InvalidClientError from None
    if not colon:
        raise InvalidClientError
    return unquote_plus(client_id), unquote_plus(secret)


class TokenGrant(ClientForm):
    """RFC 6749, sections 4.3.2, 4.4.2 and 6; RFC 8707 for `resource`."""

    grant_type: Annotated[str, Field(examples=["password"], json_schema_extra={"enum": [*GRANT_TYPES]})]
    username: Annotated[str | None, Field(max_length=320, examples=["ana@example.com"])] = None
    password: Password | None = None
    otp: Annotated[
        Code | None, Field(description="A code of the second factor, where the account has one.", examples=["123456"])
    ] = None
    refresh_token: JsonWebToken | None = None
    scope: Annotated[str | None, Field(max_length=200, examples=["users:read"])] = None
    resource: Annotated[
        list[Annotated[str, Field(max_length=500)]],
        Field(description="One of JWT_RESOURCES: the token is for it alone.", examples=[["https://api.example.com"]]),
    ] = []

    def person(self) -> tuple[str, str]:
        """The address and the password. Raises `ValidationException` if one is missing, or the first is none."""
        self._refuse_scopes()
        if self.username is None or self.password is None:
            raise ValidationException.for_field("username" if self.username is None else "password", "is required")
        try:
            return normalize_email(self.username), self.password.get_secret_value()
        except ValueError as error:
            raise ValidationException.for_field("username", str(error)) from None

    def code(self) -> str | None:
        return self.otp.get_secret_value() if self.otp else None

    def renewal(self) -> str:
        """The refresh token. Raises `ValidationException` if it is missing."""
        self._refuse_scopes()
        if self.refresh_token is None:
            raise ValidationException.for_field("refresh_token", "is required")
        return self.refresh_token.get_secret_value()

    def scopes(self) -> set[str] | None:
        """Those that are asked for; `None` for all that the client has."""
        return set((self.scope or "").split()) or None

    def resources(self) -> list[str]:
        return [resource for resource in self.resource if resource]

    def _refuse_scopes(self) -> None:
        # To leave one out in silence would let the client believe that it has it (RFC 6749, section 3.3).
        if self.scopes():
            raise InvalidScopeError(f"Tokens of people have no scopes. Services may have {', '.join(Scope)}.")


class TokenForm(ClientForm):
    """RFC 7009, section 2.1; RFC 7662, section 2.1. We tell a token's kind by itself, so a hint is ignored."""

    token: Annotated[SecretStr, Field(examples=[EXAMPLE_JWT])]
    token_type_hint: Annotated[str | None, Field(examples=["refresh_token"])] = None


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


class Introspection(BaseModel):
    """RFC 7662, section 2.2. Of a token that is not active it says nothing else."""

    active: Annotated[bool, Field(examples=[True])]
    token_type: Annotated[Literal["Bearer"] | None, Field(description="Of an access token.", examples=["Bearer"])] = (
        None
    )
    iss: Annotated[str | None, Field(examples=["https://accounts.example.com"])] = None
    aud: Annotated[str | None, Field(description="Of an access token.", examples=["user-auth-service"])] = None
    sub: Annotated[str | None, Field(description="The id of the user, or of the service.", examples=[EXAMPLE_ID])] = (
        None
    )
    client_id: Annotated[
        str | None,
        Field(description=f"The id of the service, or `{FIRST_PARTY_CLIENT_ID}`.", examples=[FIRST_PARTY_CLIENT_ID]),
    ] = None
    scope: Annotated[str | None, Field(description="Of a service.", examples=["users:read"])] = None
    exp: Annotated[int | None, Field(examples=[1_795_000_900])] = None
    iat: Annotated[int | None, Field(examples=[1_795_000_000])] = None
    jti: Annotated[str | None, Field(examples=["5f0c7f6a1d0b4b7f9a53c1c5d7a0e1aa"])] = None
    sid: Annotated[str | None, Field(description="The id of the session.", examples=[EXAMPLE_ID])] = None
    auth_time: Annotated[int | None, Field(examples=[1_795_000_000])] = None
    amr: Annotated[list[str] | None, Field(examples=[["pwd", "otp", "mfa"]])] = None

    @classmethod
    def of(cls, claims: dict[str, Any] | None) -> Self:
        return cls(active=False) if claims is None else cls(active=True, **claims)
