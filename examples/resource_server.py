"""Another service, which verifies the access tokens of the user and auth service by itself. Copy it.

To verify tokens it shares nothing with the issuer but its address: no secret, no database, no call for each request. To
read users it has credentials of its own, CLIENT_ID and CLIENT_SECRET (`python -m src clients create shop --scope
users:read`). Start it with `ISSUER=http://localhost:8000 uvicorn examples.resource_server:app --port 9000`; the issuer
must know it (`JWT_RESOURCES=http://localhost:9000`), and clients ask for its tokens with `resource=`. It needs fastapi,
uvicorn and pyjwt[crypto] 2.15 or newer. docs/verifying-tokens.md says why each check is there.
"""

import json
import os
import time
from base64 import b64encode
from functools import lru_cache
from threading import Lock
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

ISSUER = os.environ.get("ISSUER", "http://localhost:8000")
AUDIENCE = os.environ.get("AUDIENCE", "http://localhost:9000")  # its own address, one of the issuer's JWT_RESOURCES
ALGORITHMS = ["ES256", "EdDSA", "RS256"]  # from here, never from the token; and none that uses a shared secret
CLOCKS_DIFFER_BY = 5  # seconds
CLIENT_ID = os.environ.get("CLIENT_ID", "")
CLIENT_SECRET = os.environ.get("CLIENT_SECRET", "")

app = FastAPI(title="A resource server")


@lru_cache
def issuer_metadata() -> dict[str, Any]:
    metadata = ask(Request(f"{ISSUER}/.well-known/oauth-authorization-server"))  # noqa: S310 - ours
    if metadata["issuer"] != ISSUER:  # RFC 8414, section 3.3
        raise RuntimeError(f"ISSUER is {ISSUER}, but calls itself {metadata['issuer']}.")
    return metadata


@lru_cache
def issuer_keys() -> jwt.PyJWKClient:
    """The public keys of the issuer, kept as long as their Cache-Control says (five minutes).

    A token that names an unknown key makes it look again, but not more often than every two seconds: anyone may send
    such tokens.
    """
    return jwt.PyJWKClient(issuer_metadata()["jwks_uri"], lifespan=300, cooldown_duration=2, timeout=3)


def ask(request: Request) -> dict[str, Any]:
    with urlopen(request, timeout=3) as response:  # noqa: S310 - the address is ours
        answer: dict[str, Any] = json.load(response)
    return answer


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


class Users:
    """The issuer's users, read with this service's own credentials (RFC 6749, section 4.4)."""

    def __init__(self) -> None:
        self._token = ""
        self._renew_at = 0.0
        self._lock = Lock()

    def read(self, user_id: str) -> dict[str, Any]:
        try:
            return self._read(user_id)
        except HTTPError as refusal:
            if refusal.code != 401:
                raise
        self._renew_at = 0.0  # the token ended early, as when the issuer's keys were changed after a leak
        return self._read(user_id)

    def _read(self, user_id: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._own_token()}"}
        return ask(Request(f"{ISSUER}/api/users/{user_id}", headers=headers))  # noqa: S310 - the address is ours

    def _own_token(self) -> str:
        """One token serves all requests until shortly before it expires."""
        with self._lock:
            if time.monotonic() >= self._renew_at:
                credentials = b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
                form = urlencode({"grant_type": "client_credentials", "scope": "users:read"}).encode()
                answer = ask(
                    Request(  # noqa: S310 - the address is ours
                        issuer_metadata()["token_endpoint"], form, {"Authorization": f"Basic {credentials}"}
                    )
                )
                self._token, self._renew_at = answer["access_token"], time.monotonic() + answer["expires_in"] * 0.9
            return self._token


users = Users()


@app.get("/whoami")
def whoami(claims: Claims) -> dict[str, str]:
    return {"user_id": claims["sub"], "session_id": claims["sid"]}


@app.get("/profile")
def profile(claims: Claims) -> dict[str, Any]:
    """What the access token does not say of the person: they are asked for by their id, with our own credentials."""
    try:
        user = users.read(claims["sub"])
    except HTTPError as refusal:
        if refusal.code == 404:
            raise HTTPException(404, "This user has left.") from None
        raise HTTPException(502, f"The issuer does not let us read users ({refusal.code}).") from None
    except OSError:
        raise HTTPException(503, "The issuer does not answer.", {"Retry-After": "2"}) from None
    return {"user_id": user["id"], "email": user["email"], "name": user["name"]}
