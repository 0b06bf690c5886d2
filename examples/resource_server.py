"""Another service, which verifies the access tokens of the user and auth service by itself. Copy it.

It shares nothing with the issuer but its address: no secret, no database, no call for each request. Start it with
`ISSUER=http://localhost:8000 uvicorn examples.resource_server:app --port 9000`; it needs fastapi, uvicorn and
pyjwt[crypto] 2.15 or newer. docs/verifying-tokens.md says why each check is there.
"""

import json
import os
from functools import lru_cache
from typing import Annotated, Any
from urllib.request import urlopen

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

ISSUER = os.environ.get("ISSUER", "http://localhost:8000")
AUDIENCE = os.environ.get("AUDIENCE", "user-auth-service")  # JWT_AUDIENCE of the issuer
ALGORITHMS = ["ES256", "EdDSA", "RS256"]  # from here, never from the token; and none that uses a shared secret
CLOCKS_DIFFER_BY = 5  # seconds

app = FastAPI(title="A resource server")


@lru_cache
def issuer_keys() -> jwt.PyJWKClient:
    """The public keys of the issuer, kept as long as their Cache-Control says (five minutes).

    A token that names an unknown key makes it look again, but not more often than every two seconds: anyone may send
    such tokens.
    """
    with urlopen(f"{ISSUER}/.well-known/oauth-authorization-server", timeout=3) as response:  # noqa: S310 - ours
        metadata = json.load(response)
    if metadata["issuer"] != ISSUER:  # RFC 8414, section 3.3
        raise RuntimeError(f"ISSUER is {ISSUER}, but calls itself {metadata['issuer']}.")
    return jwt.PyJWKClient(metadata["jwks_uri"], lifespan=300, cooldown_duration=2, timeout=3)


# `def`, not `async def`: now and then it fetches keys and waits, so FastAPI runs it in a thread, off the event loop.
def read_claims(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> dict[str, Any]:
    """What a good access token says; anything else is a 401."""
    if credentials is None:
        raise HTTPException(401, "Send an access token.", {"WWW-Authenticate": "Bearer"})
    try:
        header = jwt.get_unverified_header(credentials.credentials)
        if header.get("typ") != "at+jwt":  # RFC 9068: no other kind of token may pass for an access token
            raise jwt.InvalidTokenError("It is no access token.")
        return jwt.decode(
            credentials.credentials,
            issuer_keys().get_signing_key(header.get("kid", "")),
            algorithms=ALGORITHMS,
            issuer=ISSUER,
            audience=AUDIENCE,
            leeway=CLOCKS_DIFFER_BY,
            options={"require": ["iss", "aud", "exp", "iat", "sub", "sid"]},
        )
    except (jwt.PyJWKClientConnectionError, OSError):
        raise HTTPException(503, "The issuer does not answer.", {"Retry-After": "2"}) from None
    except jwt.PyJWTError:
        raise HTTPException(401, "Not valid.", {"WWW-Authenticate": 'Bearer error="invalid_token"'}) from None


Claims = Annotated[dict[str, Any], Depends(read_claims)]


@app.get("/whoami")
def whoami(claims: Claims) -> dict[str, str]:
    return {"user_id": claims["sub"], "session_id": claims["sid"]}
