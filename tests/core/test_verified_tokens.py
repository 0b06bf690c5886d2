"""The memory of access tokens whose signature was verified: it may save work, and never let anything in."""

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from src.core.exceptions import InvalidAccessTokenError
from src.core.keys import KeyRing, rotate
from src.core.tokens import AccessClaims, TokenSigner, VerifiedTokens
from tests.support.keys import sign_access


@pytest.fixture
def signer(tmp_path: Path) -> TokenSigner:
    keys = KeyRing(tmp_path / "keys", "ES256", may_generate=True, reload_seconds=0)
    return TokenSigner(keys, issuer="https://id.example.com", audience="example", access_lifetime=timedelta(minutes=1))


def test_a_token_is_remembered_once_it_was_verified(signer: TokenSigner) -> None:
    token = sign_access(signer, uuid4(), uuid4())
    assert signer._verified.find(token, signer.keys.access_keys) is None

    claims = signer.read_access(token)

    assert signer._verified.find(token, signer.keys.access_keys) is claims
    assert signer.read_access(token) is claims


def test_its_expiry_is_checked_each_time(signer: TokenSigner) -> None:
    token = sign_access(replace(signer, access_lifetime=timedelta(0)), uuid4(), uuid4())
    claims, keys = AccessClaims(uuid4(), uuid4()), signer.keys.access_keys
    signer._verified.find(token, keys)
    signer._verified.add(token, claims, expires_at=int(time.time()) + 60)
    assert signer.read_access(token) is claims

    signer._verified.add(token, claims, expires_at=int(time.time()))

    with pytest.raises(InvalidAccessTokenError):
        signer.read_access(token)


def test_a_token_is_refused_once_its_key_is_retired(signer: TokenSigner) -> None:
    token = sign_access(signer, uuid4(), uuid4())
    signer.read_access(token)

    [old] = signer.keys.access_keys
    rotate(old.path.parent, "ES256")
    old.path.unlink()

    with pytest.raises(InvalidAccessTokenError):
        signer.read_access(token)


def test_what_was_refused_is_not_remembered(signer: TokenSigner) -> None:
    token = sign_access(signer, uuid4(), uuid4())
    forged = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")

    for _ in range(2):
        with pytest.raises(InvalidAccessTokenError):
            signer.read_access(forged)


def test_the_least_recently_used_makes_room() -> None:
    verified, claims = VerifiedTokens(size=2), AccessClaims(uuid4(), uuid4())
    keys = ()
    verified.add("one", claims, expires_at=int(time.time()) + 60)
    verified.add("two", claims, expires_at=int(time.time()) + 60)
    verified.find("one", keys)

    verified.add("three", claims, expires_at=int(time.time()) + 60)

    assert [token for token in ("one", "two", "three") if verified.find(token, keys)] == ["one", "three"]
