"""What the service says of itself, and of what went wrong."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

_EXAMPLE_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    "kid": "20261124T103000-5f0c7f6a",
    "use": "sig",
    "alg": "ES256",
}


class JsonWebKeySet(BaseModel):
    keys: Annotated[list[dict[str, str]], Field(examples=[[_EXAMPLE_KEY]])]


_EXAMPLE_SERVER: JsonValue = {
    "issuer": "https://accounts.example.com",
    "token_endpoint": "https://accounts.example.com/auth/token",
    "revocation_endpoint": "https://accounts.example.com/auth/revoke",
    "introspection_endpoint": "https://accounts.example.com/auth/introspect",
    "jwks_uri": "https://accounts.example.com/.well-known/jwks.json",
    "response_types_supported": ["none"],
    "grant_types_supported": ["password", "refresh_token", "client_credentials"],
    "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
    "revocation_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
    "introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "Bearer"],
    "scopes_supported": ["users:read", "users:write", "audit:read", "tokens:introspect"],
}


class AuthorizationServer(BaseModel):
    """RFC 8414, section 2."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_SERVER]})

    issuer: str
    token_endpoint: str
    revocation_endpoint: str
    introspection_endpoint: str
    jwks_uri: str
    service_documentation: str | None = None  # left out where API_DOCS is off
    response_types_supported: list[str]
    grant_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]
    scopes_supported: list[str]


class Health(BaseModel):
    status: Annotated[Literal["ok"], Field(examples=["ok"])] = "ok"


class Readiness(Health):
    mail: Annotated[
        Literal["ok", "stuck"],
        Field(
            description="Whether emails wait for minutes, or failed for reasons of ours: `python -m src outbox list`.",
            examples=["ok"],
        ),
    ]


class Problem(BaseModel):
    """Every error, of every kind, looks like this."""

    detail: Annotated[str, Field(description="A sentence for a person: what is wrong, and what to do.")]
    code: Annotated[str, Field(description="A stable name for programs.")]
    details: Annotated[
        dict[str, Any], Field(description="More for programs; a 422 lists `fields` as `{field, reason}`.")
    ]


class OAuthProblem(Problem):
    """The same, with the members that OAuth libraries look for (RFC 6749, section 5.2)."""

    error: Annotated[str, Field(description="One of the error codes of OAuth 2.0.")]
    error_description: Annotated[str, Field(description="What is wrong, in ASCII.")]
