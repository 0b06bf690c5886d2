"""Tokens: each kind is read back as what it is, and never as another kind."""

from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from src.core.exceptions import InvalidAccessTokenError, InvalidRefreshTokenError
from src.core.keys import SIGNS_AFTER, KeyRing
from src.core.tokens import AccessClaims, RefreshClaims, TokenSigner, hash_token, new_token
from tests.support.keys import ALGORITHMS, make_ring, rotate_ago, sign_access


def make_signer(keys: KeyRing) -> TokenSigner:
    return TokenSigner(keys, issuer="https://id.example.com", audience="example", access_lifetime=timedelta(minutes=15))


@pytest.fixture
def signer(tmp_path: Path) -> TokenSigner:
    return make_signer(make_ring(tmp_path / "keys"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_access_token_is_read_back(tmp_path: Path, algorithm: str) -> None:
    signer = make_signer(make_ring(tmp_path, algorithm))  # type: ignore[arg-type]  # parametrized by its values
    user_id, session_id = uuid4(), uuid4()

    token = sign_access(signer, user_id, session_id)

    assert signer.read_access(token) == AccessClaims(user_id, session_id)


def test_a_refresh_token_is_read_back(signer: TokenSigner) -> None:
    session_id = uuid4()

    token = signer.sign_refresh(session_id, 7)

    assert signer.read_refresh(token) == RefreshClaims(session_id, 7)


def test_no_two_access_tokens_are_the_same(signer: TokenSigner) -> None:
    user_id, session_id = uuid4(), uuid4()

    assert sign_access(signer, user_id, session_id) != sign_access(signer, user_id, session_id)


def test_the_same_session_and_generation_give_the_same_refresh_token(tmp_path: Path) -> None:
    session_id = uuid4()
    one, other = (make_signer(make_ring(tmp_path)) for _ in range(2))

    assert one.sign_refresh(session_id, 2) == other.sign_refresh(session_id, 2)
    assert one.sign_refresh(session_id, 2) != one.sign_refresh(session_id, 3)
    assert one.sign_refresh(session_id, 2) != one.sign_refresh(uuid4(), 2)


def test_a_refresh_token_is_no_access_token(signer: TokenSigner) -> None:
    with pytest.raises(InvalidAccessTokenError):
        signer.read_access(signer.sign_refresh(uuid4(), 1))


def test_an_access_token_is_no_refresh_token(signer: TokenSigner) -> None:
    with pytest.raises(InvalidRefreshTokenError):
        signer.read_refresh(sign_access(signer, uuid4(), uuid4()))


def test_a_one_time_token_is_neither(signer: TokenSigner) -> None:
    token = new_token()

    with pytest.raises(InvalidAccessTokenError):
        signer.read_access(token)
    with pytest.raises(InvalidRefreshTokenError):
        signer.read_refresh(token)


def test_tokens_of_other_keys_are_refused(signer: TokenSigner, tmp_path: Path) -> None:
    stranger = make_signer(make_ring(tmp_path / "other keys"))

    with pytest.raises(InvalidAccessTokenError):
        signer.read_access(sign_access(stranger, uuid4(), uuid4()))
    with pytest.raises(InvalidRefreshTokenError):
        signer.read_refresh(stranger.sign_refresh(uuid4(), 1))


def test_tokens_survive_a_rotation_but_not_the_retirement_of_their_key(tmp_path: Path) -> None:
    rotate_ago(tmp_path, timedelta(days=1))
    signer = make_signer(make_ring(tmp_path))
    access, refresh = sign_access(signer, uuid4(), uuid4()), signer.sign_refresh(uuid4(), 1)
    old = (signer.keys.access_signer(), signer.keys.refresh_signer())

    rotate_ago(tmp_path, SIGNS_AFTER)

    assert signer.keys.access_signer() != old[0]
    assert signer.keys.refresh_signer() != old[1]
    signer.read_access(access)
    signer.read_refresh(refresh)
    for key in old:
        key.path.unlink()
    with pytest.raises(InvalidAccessTokenError):
        signer.read_access(access)
    with pytest.raises(InvalidRefreshTokenError):
        signer.read_refresh(refresh)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "🔑", "\ud800", "W10.e30.", "bnVsbA.e30."])
def test_what_is_no_jwt_is_refused(signer: TokenSigner, token: str) -> None:
    with pytest.raises(InvalidAccessTokenError):
        signer.read_access(token)
    with pytest.raises(InvalidRefreshTokenError):
        signer.read_refresh(token)


def test_one_time_tokens_hold_256_bits_and_are_safe_in_a_url() -> None:
    tokens = {new_token() for _ in range(100)}

    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {43}
    assert all(token.replace("-", "").replace("_", "").isalnum() for token in tokens)


def test_the_hash_of_a_token_is_not_the_token() -> None:
    token = new_token()

    assert hash_token(token) == hash_token(token)
    assert token not in hash_token(token)
    assert len(hash_token(token)) == 64
