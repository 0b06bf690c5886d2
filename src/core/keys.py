"""The keys that sign tokens and encrypt secrets: files in a folder that all workers share. `python -m src keys` is how
people handle them.

A new key is published in the JWKS at once, but signs only when no cached JWKS can be without it. All keys verify, and
decrypt, until their file is retired.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import tempfile
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

log = logging.getLogger(__name__)

Algorithm = Literal["ES256", "EdDSA", "RS256"]
PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey

JWKS_MAX_AGE = timedelta(minutes=5)  # how long others may use a JWKS before they ask again
RELOAD_SECONDS = 2  # how soon a running worker notices a new file
SIGNS_AFTER = JWKS_MAX_AGE + timedelta(seconds=2 * RELOAD_SECONDS)

ENCRYPTION_KEY_BYTES = 32  # AES-256

_CREATED = re.compile(r"-(\d{8}T\d{6}Z)")
_GENERATED = "development"


class NoKeysError(Exception):
    """There is no key to sign or encrypt with, or a file that should hold one does not. The text says which, and what
    to do."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its file. `id` is what tokens name it by: its thumbprint (RFC 7638), for a secret a hash of it."""

    id: str
    algorithm: str
    created_at: datetime
    path: Path
    signing: PrivateKey | bytes = field(repr=False)

    @property
    def signs_from(self) -> datetime:
        return self.created_at + SIGNS_AFTER

    @property
    def is_generated(self) -> bool:
        """Whether the service made it up by itself, which is good enough for development alone."""
        return self.path.stem.startswith(_GENERATED)

    @property
    def verifying(self) -> Any:
        return self.signing if isinstance(self.signing, bytes) else self.signing.public_key()

    def public_jwk(self) -> dict[str, Any]:
        """The public half, as others need it (RFC 7517)."""
        assert not isinstance(self.signing, bytes)  # noqa: S101 - a secret has no public half
        return {**_jwk(self.signing), "kid": self.id, "use": "sig", "alg": self.algorithm}


class Keys(NamedTuple):
    """What a folder holds, each kind oldest first."""

    access: Sequence[Key]  # of access tokens: *.pem
    refresh: Sequence[Key]  # secrets of refresh tokens: *.secret
    encryption: Sequence[Key]  # of secrets in the database: *.key


class KeyRing:
    """The keys of a folder, read again when files come or go.

    Keys that were read once are kept while the folder is away, cannot be read, or lacks one of a kind: it may be
    mounted anew, or a file be half written. `NoKeysError` or `OSError` is raised only as long as none has been read.
    With `may_generate`, keys that are missing then are made once, by whichever worker is first.
    """

    def __init__(
        self, folder: Path, algorithm: Algorithm, *, may_generate: bool, reload_seconds: float = RELOAD_SECONDS
    ) -> None:
        self._folder = folder
        self._algorithm = algorithm
        self._may_generate = may_generate
        self._reload_seconds = reload_seconds
        self._files: Sequence[Path] | None = None
        self._keys = Keys((), (), ())
        self._checked_until = 0.0
        self._trouble = ""  # why the folder could not be read lately, as the log knows it

    @property
    def access_keys(self) -> Sequence[Key]:
        """Keys of access tokens, oldest first. Their public halves are the JWKS."""
        self.reload_if_changed()
        return self._keys.access

    @property
    def refresh_keys(self) -> Sequence[Key]:
        """Secrets of refresh tokens, oldest first. They are in no JWKS, so no other service can verify with them."""
        self.reload_if_changed()
        return self._keys.refresh

    @property
    def encryption_keys(self) -> Sequence[Key]:
        """Keys of what is encrypted in the database, oldest first."""
        self.reload_if_changed()
        return self._keys.encryption

    def access_signer(self) -> Key:
        self.reload_if_changed()
        return signer(signing_keys(self._keys, self._algorithm))

    def refresh_signer(self) -> Key:
        return signer(self.refresh_keys)

    def encrypter(self) -> Key:
        """The key to encrypt with: as with those that sign, every replica has had time to read it."""
        return signer(self.encryption_keys)

    def jwks(self) -> dict[str, Any]:
        """Every public key with which an access token may be verified (RFC 7517, section 5)."""
        return {"keys": [key.public_jwk() for key in self.access_keys]}

    def reload_if_changed(self) -> None:
        """Read the folder again if files have come or gone; checked every `reload_seconds` at most."""
        if time.monotonic() < self._checked_until:
            return
        try:
            self._load_if_changed()
        except (NoKeysError, OSError) as error:
            if not self._keys.access:
                raise
            self._keep(str(error))
        self._checked_until = time.monotonic() + self._reload_seconds

    def _load_if_changed(self) -> None:
        files = _list_files(self._folder)
        if files == self._files:
            return
        keys = load_keys(self._folder)
        if missing := find_missing(keys, self._algorithm):
            keys = self._generate(keys, missing)
        self._keys, self._files = keys, files
        if self._trouble:
            log.warning("The keys in %s can be read again", self._folder)
        self._trouble = ""

    def _keep(self, trouble: str) -> None:
        if trouble != self._trouble:  # once, rather than at each look
            log.warning("The keys that were read before go on working: %s", trouble)
        self._trouble = trouble
        self._files = None  # what comes back under the same names may be other keys

    def _generate(self, keys: Keys, missing: str) -> Keys:
        """Make what is missing, but never beside keys that were read: their folder is away, and will be back."""
        if not self._may_generate or self._keys.access:
            raise NoKeysError(
                f"There is {missing} in {self._folder} (JWT_KEYS_DIR): make keys with `python -m src keys rotate`."
            )
        if not signing_keys(keys, self._algorithm):
            _write_once(self._folder / f"{_GENERATED}-{self._algorithm.lower()}.pem", _new_pem(self._algorithm))
        if not keys.refresh:
            _write_once(self._folder / f"{_GENERATED}.secret", _new_secret())
        if not keys.encryption:
            _write_once(self._folder / f"{_GENERATED}.key", _new_encryption_key())
        return load_keys(self._folder)


def signing_keys(keys: Keys, algorithm: Algorithm) -> Sequence[Key]:
    """Those of the access keys that may sign. Keys of other algorithms only verify."""
    return [key for key in keys.access if key.algorithm == algorithm]


def find_missing(keys: Keys, algorithm: Algorithm) -> str:
    """Which kinds of key are missing, as a sentence tells them; empty if none is."""
    kinds = {
        f"no {algorithm} key (*.pem)": signing_keys(keys, algorithm),
        "no refresh secret (*.secret)": keys.refresh,
        "no encryption key (*.key)": keys.encryption,
    }
    return ", ".join(kind for kind, there in kinds.items() if not there)


def signer(keys: Sequence[Key]) -> Key:
    """The newest key that others have had time to hear of; at the very first start, the only one there is."""
    now = datetime.now(UTC)
    return next((key for key in reversed(keys) if key.signs_from <= now), keys[0])


def needed_until(key: Key, signing: Sequence[Key], token_lifetime: timedelta) -> datetime | None:
    """Until when tokens that this key has signed may live; `None` while it signs, or if nobody knows when it did."""
    successors = [other.signs_from for other in signing if _age(other) > _age(key)]
    return min(successors) + token_lifetime if key in signing and successors else None


def load_keys(folder: Path) -> Keys:
    """Raises `NoKeysError` for a file that holds none, `OSError` for what cannot be read."""
    files = _list_files(folder)
    access = [_load_private(path) for path in files if path.suffix == ".pem"]
    refresh = [_load_secret(path) for path in files if path.suffix == ".secret"]
    encryption = [_load_encryption_key(path) for path in files if path.suffix == ".key"]
    return Keys(*(sorted(keys, key=_age) for keys in (access, refresh, encryption)))


def rotate(folder: Path, algorithm: Algorithm) -> tuple[Key, Key, Key]:
    """Write a new access key, a new refresh secret and a new encryption key. They are used from `Key.signs_from` on."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    pem, secret, key = (
        folder / f"access-{name}.pem",
        folder / f"refresh-{name}.secret",
        folder / f"encryption-{name}.key",
    )
    _write_once(pem, _new_pem(algorithm))
    _write_once(secret, _new_secret())
    _write_once(key, _new_encryption_key())
    return _load_private(pem), _load_secret(secret), _load_encryption_key(key)


def _age(key: Key) -> tuple[datetime, str]:
    return key.created_at, key.path.name


def _list_files(folder: Path) -> Sequence[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in (".pem", ".secret", ".key"))
    except FileNotFoundError:  # before the first keys are made
        return []


def _created_at(path: Path) -> datetime:
    """From the name, since copies and mounts change a file's own times. A key named otherwise signs at once."""
    match = _CREATED.search(path.stem)
    if match is None:
        return datetime.fromtimestamp(0, UTC)
    try:
        return datetime.strptime(match[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise NoKeysError(f"{path} has a date in its name that does not exist.") from None


def _load_private(path: Path) -> Key:
    key: object = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, PrivateKey) or (algorithm := _algorithm_of(key)) is None:
        raise NoKeysError(f"{path} is not a private key, unencrypted, for ES256, EdDSA or RS256.")
    return Key(_thumbprint(_jwk(key)), algorithm, _created_at(path), path, key)


def _algorithm_of(key: PrivateKey) -> Algorithm | None:
    if isinstance(key, Ed25519PrivateKey):
        return "EdDSA"
    if isinstance(key, EllipticCurvePrivateKey):
        return "ES256" if isinstance(key.curve, SECP256R1) else None
    return "RS256" if key.key_size >= 2048 else None  # RFC 7518, section 3.3


def _load_secret(path: Path) -> Key:
    secret = path.read_bytes().strip()
    if len(secret) < 32:
        raise NoKeysError(f"{path} is too short for a secret: 32 bytes at least.")  # RFC 7518, section 3.2
    return Key(hashlib.sha256(b"kid:" + secret).hexdigest()[:16], "HS256", _created_at(path), path, secret)


def _load_encryption_key(path: Path) -> Key:
    text = path.read_bytes().strip()
    try:
        key = urlsafe_b64decode(text)
    except ValueError:
        key = b""
    if len(key) != ENCRYPTION_KEY_BYTES or urlsafe_b64encode(key) != text:
        raise NoKeysError(f"{path} is not an encryption key: {ENCRYPTION_KEY_BYTES} bytes in base64url.")
    return Key(hashlib.sha256(b"kid:" + key).hexdigest()[:16], "A256GCM", _created_at(path), path, key)


def _jwk(key: PrivateKey) -> dict[str, Any]:
    """The members that make up the public key (RFC 7638, section 3.2), and none that merely tell of its use."""
    jwk = _to_jwk(key)
    return {name: jwk[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in jwk}


def _to_jwk(key: PrivateKey) -> dict[str, Any]:
    if isinstance(key, EllipticCurvePrivateKey):
        return ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    if isinstance(key, Ed25519PrivateKey):
        return OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)


def _thumbprint(jwk: dict[str, Any]) -> str:
    canonical = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()
    return urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode()


def _new_pem(algorithm: Algorithm) -> bytes:
    key: PrivateKey
    if algorithm == "ES256":
        key = generate_private_key(SECP256R1())
    elif algorithm == "EdDSA":
        key = Ed25519PrivateKey.generate()
    else:
        key = generate_rsa_private_key(public_exponent=65537, key_size=3072)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _new_secret() -> bytes:
    return secrets.token_urlsafe(48).encode()


def _new_encryption_key() -> bytes:
    return urlsafe_b64encode(secrets.token_bytes(ENCRYPTION_KEY_BYTES))


def _write_once(path: Path, content: bytes) -> None:
    """Write a file that is whole from the moment it can be seen; if another process was first, keep that one's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        Path(temporary).unlink()
