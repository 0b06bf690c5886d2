"""Secrets that the database holds and must be able to give back: AES-256-GCM (NIST SP 800-38D), with keys that are not
in the database. So a dump of it alone tells none of them."""

import secrets
from dataclasses import dataclass
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from src.core.keys import Key, KeyRing

_NONCE_BYTES = 12


class DecryptionError(Exception):
    """The key is not here, or this was not encrypted for this user. The text says which key, and what to do."""


@dataclass(frozen=True, slots=True)
class Encrypted:
    """`key_id` names the key; `data` is the nonce, the text and its tag."""

    key_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Encryption:
    """Whose secret it is goes in as associated data: moved to another user's row, it decrypts no more."""

    keys: KeyRing

    def encrypt(self, secret: str, *, user_id: UUID) -> Encrypted:
        key = self.keys.encrypter()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return Encrypted(key.id, nonce + AESGCM(_bytes_of(key)).encrypt(nonce, secret.encode(), user_id.bytes))

    def decrypt(self, encrypted: Encrypted, *, user_id: UUID) -> str:
        """Raises `DecryptionError`."""
        key = next((key for key in self.keys.encryption_keys if key.id == encrypted.key_id), None)
        if key is None:
            raise DecryptionError(f"The encryption key {encrypted.key_id} is not in JWT_KEYS_DIR: put its file back.")
        nonce, data = encrypted.data[:_NONCE_BYTES], encrypted.data[_NONCE_BYTES:]
        try:
            return AESGCM(_bytes_of(key)).decrypt(nonce, data, user_id.bytes).decode()
        except (InvalidTag, ValueError):  # `ValueError` where not even the nonce is whole
            raise DecryptionError(f"What the key {encrypted.key_id} has encrypted was changed, or moved.") from None


def _bytes_of(key: Key) -> bytes:
    assert isinstance(key.signing, bytes)  # noqa: S101 - see `KeyRing.encryption_keys`
    return key.signing
