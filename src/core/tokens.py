"""One-time tokens: what a mailed link carries. Only their hash is ever stored."""

import hashlib
import secrets


def new_token() -> str:
    """256 random bits, safe in a URL (ASVS 5.0, 7.2.3 asks for at least 128)."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """What is stored of a token: SHA-256 suffices, because 256 random bits cannot be guessed offline."""
    return hashlib.sha256(token.encode()).hexdigest()
