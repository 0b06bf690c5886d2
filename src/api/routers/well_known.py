"""`/.well-known`: what other services need in order to verify our access tokens by themselves."""

from fastapi import APIRouter, Response

from src.api.dependencies import RuntimeDep
from src.api.schemas.oauth import GRANT_TYPES
from src.api.schemas.service import AuthorizationServer, JsonWebKeySet
from src.core.callers import Scope
from src.core.keys import JWKS_MAX_AGE

router = APIRouter(prefix="/.well-known", tags=["Discovery"])

DOCS_PATH = "/docs"
_CLIENT_AUTH_METHODS = ("client_secret_basic", "client_secret_post")
CACHE_CONTROL = f"public, max-age={JWKS_MAX_AGE.seconds}"


@router.get("/jwks.json")
async def get_jwks(response: Response, runtime: RuntimeDep) -> JsonWebKeySet:
    """The public keys of access tokens (RFC 7517). Keep them as long as `Cache-Control` says, and no longer."""
    response.headers["Cache-Control"] = CACHE_CONTROL
    return JsonWebKeySet.model_validate(runtime.signer.keys.jwks())


@router.get("/oauth-authorization-server", response_model_exclude_none=True)
async def get_metadata(response: Response, runtime: RuntimeDep) -> AuthorizationServer:
    """Where everything is (RFC 8414)."""
    response.headers["Cache-Control"] = CACHE_CONTROL
    settings = runtime.settings
    base = settings.server_public_url
    return AuthorizationServer(
        issuer=settings.issuer,
        token_endpoint=f"{base}/auth/token",
        revocation_endpoint=f"{base}/auth/revoke",
        introspection_endpoint=f"{base}/auth/introspect",
        jwks_uri=f"{base}/.well-known/jwks.json",
        service_documentation=f"{base}{DOCS_PATH}" if settings.has_api_docs else None,
        # Required, and never empty (section 3.2), although there is no authorization endpoint to send one to. `none` is
        # the one that is registered for getting no token there.
        response_types_supported=["none"],
        grant_types_supported=[*GRANT_TYPES],
        token_endpoint_auth_methods_supported=["none", *_CLIENT_AUTH_METHODS],
        revocation_endpoint_auth_methods_supported=["none", *_CLIENT_AUTH_METHODS],
        introspection_endpoint_auth_methods_supported=[*_CLIENT_AUTH_METHODS, "Bearer"],
        scopes_supported=list(Scope),
    )
