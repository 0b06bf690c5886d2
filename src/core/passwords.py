"""Passwords: the policy, and the stored form.

Others call `PasswordHasher` and `check_password`; what the stored text looks like is known only here.
"""

import base64
import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar
from unicodedata import normalize

import bcrypt

from src.core.exceptions import ValidationException
from src.core.hash_pool import HashKind, HashPool, never_disconnected

PASSWORD_MAX_LENGTH = 1024  # characters; hashing first makes every one of them count, and this bounds the work

UNUSABLE_PASSWORD = "!"  # stored where nobody has chosen a password yet: no password verifies against it

Result = TypeVar("Result")

# The last character of a salt has four spare bits, which must be zero: the library raises for any other.
_SALT, _CHECKSUM = "([./A-Za-z0-9]{21}[.Oeu])", "([./A-Za-z0-9]{31})"
_BCRYPT_SHA256 = re.compile(rf"\$bcrypt-sha256\$v=2,t=2b,r=(\d{{1,2}})\${_SALT}\${_CHECKSUM}")
_PLAIN_BCRYPT = re.compile(rf"\$2[aby]\$(\d\d)\${_SALT}{_CHECKSUM}")


class PasswordHash(NamedTuple):
    """A stored hash, read. `is_foreign` marks plain bcrypt, which other systems make."""

    rounds: int
    salt: str
    checksum: str
    is_foreign: bool


def parse_hash(stored: str) -> PasswordHash | None:
    """Read a stored hash; `None` if it is not one that we can verify."""
    for pattern, is_foreign in ((_BCRYPT_SHA256, False), (_PLAIN_BCRYPT, True)):
        match = pattern.fullmatch(stored)
        if match and 4 <= int(match[1]) <= 31:
            return PasswordHash(int(match[1]), match[2], match[3], is_foreign)
    return None


def normalize_password(password: str) -> str:
    """The one form of texts that look the same (NFC: NIST SP 800-63B-4, 3.1.1.2): keyboards and systems differ in
    whether "é" is one code point or two."""
    return normalize("NFC", password)


def hash_password(password: str, rounds: int) -> str:
    """The stored form of a password, normalized, in passlib's `bcrypt_sha256` version 2 format.

    bcrypt alone reads 72 bytes and stops at a NUL. Its input is therefore HMAC-SHA-256 of the password, in base64,
    keyed with the salt: with a plain SHA-256 a digest leaked elsewhere could be tried here ("password shucking").
    """
    salt = bcrypt.gensalt(rounds).decode()[-22:]
    secret = _prehash(normalize_password(password), salt)
    return f"$bcrypt-sha256$v=2,t=2b,r={rounds}${salt}${_checksum(secret, rounds, salt)}"


def verify_password(password: str, stored: str | None, rounds: int) -> bool:
    """Whether the password, in any of its forms, is the stored one.

    A mismatch costs a hash of `rounds` for each form, whether nobody has this address (`None`), or the stored hash is
    cheaper or cannot be read: the time taken tells what was typed, and not who has an account.
    """
    parsed = parse_hash(stored) if stored else None
    known = parsed or _decoy(rounds)
    forms = _forms(password)
    # No form is left out once one has matched: the time would tell which of them is stored.
    matches = [hmac.compare_digest(_derive(form, known), known.checksum) for form in forms]
    if any(matches):
        return True
    for _ in forms:
        _make_up_for(known, rounds)
    return False


def needs_rehash(stored: str, rounds: int) -> bool:
    """Whether a hash that has just verified should be replaced: it is foreign, or cheaper than `rounds`."""
    parsed = parse_hash(stored)
    return parsed is None or parsed.is_foreign or parsed.rounds < rounds


def _forms(password: str) -> list[str]:
    """The password as it was typed, composed and decomposed, each once: other systems hash either, and so did we."""
    return list(dict.fromkeys((normalize_password(password), password, normalize("NFD", password))))


def _derive(password: str, known: PasswordHash) -> str:
    # Plain bcrypt was made of the first 72 bytes; bcrypt 5 raises for more.
    secret = password.encode()[:72] if known.is_foreign else _prehash(password, known.salt)
    return _checksum(secret, known.rounds, known.salt)


def _make_up_for(known: PasswordHash, rounds: int) -> None:
    """Hash until a hash cheaper than `rounds` has cost as much: 2^r + (2^r + ... + 2^(rounds-1)) is 2^rounds."""
    for cost in range(known.rounds, rounds):
        _checksum(b"", cost, known.salt)


def _prehash(password: str, salt: str) -> bytes:
    return base64.b64encode(hmac.digest(salt.encode(), password.encode(), "sha256"))


def _checksum(secret: bytes, rounds: int, salt: str) -> str:
    return bcrypt.hashpw(secret, f"$2b${rounds:02}${salt}".encode()).decode()[-31:]


@lru_cache
def _decoy(rounds: int) -> PasswordHash:
    return PasswordHash(rounds, bcrypt.gensalt(rounds).decode()[-22:], checksum="", is_foreign=False)


def check_password(password: str, *, email: str, min_length: int, field: str = "password") -> None:
    """The policy: length, no common password, not the address itself (NIST SP 800-63B-4, 3.1.1.2: no composition).

    It looks at the normalized password. Raises `ValidationException` that names the reason.
    """
    password = normalize_password(password)
    folded = password.casefold()
    if len(password) < min_length:
        raise ValidationException.for_field(field, f"must have at least {min_length} characters")
    if folded in (email.casefold(), email.casefold().partition("@")[0]):
        raise ValidationException.for_field(field, "must not be the e-mail address")
    if folded in _common_passwords():
        raise ValidationException.for_field(field, "is one of the passwords that attackers try first")


@lru_cache
def _common_passwords() -> frozenset[str]:
    lines = (Path(__file__).parent / "common_passwords.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


@dataclass(frozen=True, slots=True)
class PasswordHasher:
    """Hashes and verifies for one caller, in the pool that all share.

    What it does raises `ServiceUnavailableException` when too many are waiting; see `HashPool.run`.
    """

    pool: HashPool
    rounds: int
    origin: str  # as `RequestOrigin.network` has it
    is_disconnected: Callable[[], Awaitable[bool]] = never_disconnected

    def require_room(self, kind: HashKind) -> None:
        """For those who do something first that costs more than being refused."""
        self.pool.require_room(kind, self.origin)

    async def hash(self, password: str, *, kind: HashKind) -> str:
        """A new stored hash."""
        return await self._run(lambda: hash_password(password, self.rounds), kind)

    async def verify(self, password: str, stored: str | None, *, kind: HashKind) -> bool:
        """See `verify_password`."""
        return await self._run(lambda: verify_password(password, stored, self.rounds), kind)

    async def _run(self, work: Callable[[], Result], kind: HashKind) -> Result:
        return await self.pool.run(work, kind=kind, origin=self.origin, is_disconnected=self.is_disconnected)
