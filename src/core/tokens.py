"""Tokens: one-time tokens of mailed links, access tokens that anyone can verify, refresh tokens that only we can read.

None can be taken for another: they differ in `typ`, in keys, and in the tables behind them.
"""

import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, Self
from uuid import UUID, uuid4

import jwt

from src.core.callers import AuthenticatedClient
from src.core.exceptions import (
    InvalidAccessTokenError,
    InvalidRefreshTokenError,
    InvalidTargetError,
    UnauthorizedException,
)
from src.core.keys import Key, KeyRing
from src.core.logs import RareWarning
from src.core.settings import Settings

ACCESS_TOKEN_TYPE = "at+jwt"  # RFC 9068, section 2.1
REFRESH_TOKEN_TYPE = "rt+jwt"
FIRST_PARTY_CLIENT_ID = "first-party"  # people log in to us, through whichever front end (RFC 9068, section 2.2)

VERIFIED_TOKENS = 2048  # remembered by each process, at about 1 KiB each

log = logging.getLogger(__name__)


def new_token() -> str:
    """256 random bits, safe in a URL (ASVS 5.0, 7.2.3 asks for at least 128)."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """What is stored of a token: SHA-256 suffices, because 256 random bits cannot be guessed offline."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AccessClaims:
    user_id: UUID
    session_id: UUID


@dataclass(frozen=True, slots=True)
class RefreshClaims:
    session_id: UUID
    generation: int


class VerifiedTokens:
    """Access tokens whose signature was verified lately, and what they say. Verifying is most of the cost of reading.

    Whether a token has expired is checked each time, and a change of keys forgets them all. The least recently used
    one makes room for the next.
    """

    def __init__(self, size: int = VERIFIED_TOKENS) -> None:
        self._size = size
        self._keys: Sequence[Key] = ()
        self._verified = OrderedDict[str, tuple[AccessClaims | AuthenticatedClient, int]]()

    def find(self, token: str, keys: Sequence[Key]) -> AccessClaims | AuthenticatedClient | None:
        if keys is not self._keys:  # the key ring makes a new sequence when files have come or gone
            self._keys = keys
            self._verified.clear()
        claims, expires_at = self._verified.get(token, (None, 0))
        if claims is None or expires_at <= time.time():
            return None
        self._verified.move_to_end(token)
        return claims

    def add(self, token: str, claims: AccessClaims | AuthenticatedClient, *, expires_at: int) -> None:
        self._verified[token] = claims, expires_at
        if len(self._verified) > self._size:
            self._verified.popitem(last=False)


# Without a word, people seem to be logged out without a cause. It does not repeat the token's own words.
_UNKNOWN_KEY = (
    "A token was refused because this process does not have its key. Probably another replica with other keys signed "
    "it, or its key was retired early: all replicas must have the same files in JWT_KEYS_DIR. Compare what "
    "`python -m src keys list` shows on each."
)


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Signs and reads the JWTs of sessions (RFC 9068, and RFC 8725 for what is refused)."""

    keys: KeyRing
    issuer: str
    audience: str
    access_lifetime: timedelta
    resources: Sequence[str] = ()
    _verified: VerifiedTokens = field(default_factory=VerifiedTokens, repr=False)
    _warning: RareWarning = field(default_factory=lambda: RareWarning(log), repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            KeyRing(settings.jwt_keys_dir, settings.jwt_algorithm, may_generate=not settings.is_production),
            issuer=settings.issuer,
            audience=settings.jwt_audience,
            access_lifetime=timedelta(seconds=settings.auth_access_ttl_seconds),
            resources=settings.jwt_resources,
        )

    def choose_audience(self, resources: Sequence[str]) -> str:
        """For whom a token is that is asked for these resources (RFC 8707): for us, if there is none.

        Raises `InvalidTargetError` for several and for one that is not known.
        """
        if not resources:
            return self.audience
        if len(resources) > 1 or resources[0] not in self.resources:
            raise InvalidTargetError
        return resources[0]

    def sign_access(
        self,
        user_id: UUID,
        session_id: UUID,
        *,
        authenticated_at: datetime,
        second_factor_at: datetime | None,
        audience: str | None = None,
    ) -> str:
        """It tells when and how the user proved who they are (RFC 9068, section 2.2.1; RFC 8176)."""
        methods = ["pwd"] if second_factor_at is None else ["pwd", "otp", "mfa"]
        return self._sign_access(
            {
                "sub": str(user_id),
                "client_id": FIRST_PARTY_CLIENT_ID,
                "sid": str(session_id),
                "auth_time": int(authenticated_at.timestamp()),
                "amr": methods,
            },
            audience,
        )

    def sign_service_access(self, client_id: UUID, scopes: Iterable[str], *, audience: str | None = None) -> str:
        """An access token of another service: it has no session (RFC 9068, section 2.2)."""
        claims = {"sub": str(client_id), "client_id": str(client_id), "scope": " ".join(scopes)}
        return self._sign_access(claims, audience)

    def read_access(self, token: str) -> AccessClaims | AuthenticatedClient:
        """Whose token it is. Whether the session or the client still lives is for the database to say.

        Raises `InvalidAccessTokenError`.
        """
        keys = self.keys.access_keys
        verified = self._verified.find(token, keys)
        if verified is not None:
            return verified
        claims = self._read_access(token, self.audience)
        verified = _identify(claims)
        self._verified.add(token, verified, expires_at=int(claims["exp"]))
        return verified

    def inspect_access(self, token: str) -> tuple[AccessClaims | AuthenticatedClient, dict[str, Any]]:
        """As `read_access`, of a token for another resource too, and with all that it says. It is for telling, not for
        letting in."""
        claims = self._read_access(token, [self.audience, *self.resources])
        return _identify(claims), claims

    def sign_refresh(self, session_id: UUID, generation: int) -> str:
        """The same session and generation give the same token while one secret signs. It ends when its session does."""
        return _sign({"sid": str(session_id), "gen": generation}, self.keys.refresh_signer(), REFRESH_TOKEN_TYPE)

    def read_refresh(self, token: str) -> RefreshClaims:
        """Raises `InvalidRefreshTokenError`."""
        claims = _read(token, self.keys.refresh_keys, REFRESH_TOKEN_TYPE, InvalidRefreshTokenError, self._warning)
        return RefreshClaims(UUID(claims["sid"]), claims["gen"])

    def fingerprint(self, text: str) -> str:
        """A keyed hash, by which the same text is recognised while one refresh secret signs. Whoever reads it where it
        is stored cannot find the text by trying, as they could with a plain hash of an address."""
        secret = self.keys.refresh_signer().signing
        assert isinstance(secret, bytes)  # noqa: S101 - refresh tokens are signed by a secret, see KeyRing
        key = hmac.digest(secret, b"fingerprint", "sha256")
        return hmac.digest(key, text.encode(), "sha256").hex()

    def _read_access(self, token: str, audience: str | Sequence[str]) -> dict[str, Any]:
        return _read(
            token,
            self.keys.access_keys,
            ACCESS_TOKEN_TYPE,
            InvalidAccessTokenError,
            self._warning,
            issuer=self.issuer,
            audience=audience,
            options={"require": ["iss", "aud", "sub", "iat", "exp", "jti"], "verify_iat": False},
        )

    def _sign_access(self, subject: dict[str, Any], audience: str | None) -> str:
        now = datetime.now(UTC)
        claims = subject | {
            "iss": self.issuer,
            "aud": audience or self.audience,
            "iat": now,
            "exp": now + self.access_lifetime,
            "jti": uuid4().hex,
        }
        return _sign(claims, self.keys.access_signer(), ACCESS_TOKEN_TYPE)


def _identify(claims: dict[str, Any]) -> AccessClaims | AuthenticatedClient:
    try:
        return _read_person(claims) if "sid" in claims else _read_service(claims)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise InvalidAccessTokenError from None


def _read_person(claims: dict[str, Any]) -> AccessClaims:
    # Tokens from before there was a `client_id` lack it.
    if claims.get("client_id", FIRST_PARTY_CLIENT_ID) != FIRST_PARTY_CLIENT_ID:
        raise ValueError("Services have no sessions.")
    return AccessClaims(UUID(claims["sub"]), UUID(claims["sid"]))


def _read_service(claims: dict[str, Any]) -> AuthenticatedClient:
    if claims["sub"] != claims["client_id"]:  # a service is the subject of its token itself (RFC 9068, section 2.2)
        raise ValueError("These claims do not go together.")
    return AuthenticatedClient(UUID(claims["client_id"]), frozenset(claims["scope"].split()))


def _sign(claims: dict[str, Any], key: Key, token_type: str) -> str:
    headers = {"typ": token_type, "kid": key.id}
    return jwt.encode(claims, key.signing, algorithm=key.algorithm, headers=headers)


def _read(
    token: str,
    keys: Sequence[Key],
    token_type: str,
    refusal: type[UnauthorizedException],
    warning: RareWarning,
    **checks: Any,
) -> dict[str, Any]:
    """The claims of a token that one of these keys has signed.

    The key comes from our own list and brings its algorithm; nothing in the token chooses either. A header that we
    never write (`jku`, `x5u`, `jwk`, `crit`) is refused unread.
    """

    def refuse() -> NoReturn:
        raise refusal from None

    try:
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError):
        refuse()
    key = next((key for key in keys if key.id == header.get("kid")), None)
    if key is None:
        names = {"typ": token_type, "kid": header.get("kid")}
        if any(header == names | {"alg": each.algorithm} for each in keys):
            warning.give(_UNKNOWN_KEY)
        refuse()
    if header != {"typ": token_type, "kid": key.id, "alg": key.algorithm}:
        refuse()
    try:
        return jwt.decode(token, key.verifying, algorithms=[key.algorithm], **checks)
    except (jwt.InvalidTokenError, ValueError):
        refuse()
