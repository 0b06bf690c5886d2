"""The example of a second service, and ours, as real processes that share an address and nothing else."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from src.core.keys import SIGNS_AFTER, load_keys
from tests.support.keys import rotate_ago
from tests.support.processes import Running, free_port, run_app, run_command, wait_until
from tests.support.steps import PASSWORD, LoggedIn, read_tokens, token_of

pytestmark = pytest.mark.slow

RESOURCE = "http://localhost:9000"
CREDENTIALS = {"email": "ana@example.com", "password": PASSWORD}


@dataclass(frozen=True)
class Pair:
    issuer: Running
    resource_server: Running
    keys: Path
    settings: dict[str, str]

    def log_in(self, **form: str) -> LoggedIn:
        """With an access token for the resource server, unless another resource is named."""
        form = {"grant_type": "password", "username": CREDENTIALS["email"], "password": PASSWORD} | (
            form or {"resource": RESOURCE}
        )
        return read_tokens(httpx.post(f"{self.issuer.url}/auth/token", data=form))

    def whoami(self, token: str) -> httpx.Response:
        return httpx.get(f"{self.resource_server.url}/whoami", headers={"Authorization": f"Bearer {token}"})

    def profile(self, token: str) -> httpx.Response:
        return httpx.get(f"{self.resource_server.url}/profile", headers={"Authorization": f"Bearer {token}"})

    def count_key_requests(self) -> int:
        return self.issuer.log.count("GET /.well-known/jwks.json 200")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder, port = tmp_path_factory.mktemp("pair"), free_port()
    keys, url = folder / "keys", f"http://127.0.0.1:{port}"
    rotate_ago(keys, timedelta(days=30))
    settings = {"SERVER_PUBLIC_URL": url, "DATABASE_URL": f"sqlite:///{folder}/users.db", "JWT_KEYS_DIR": str(keys)}
    settings |= {"JWT_RESOURCES": RESOURCE}
    with ExitStack() as stack:
        issuer = stack.enter_context(run_app("src.api.app:app", port, folder / "issuer.log", **settings))
        issuer.wait_until_ready()
        client = json.loads(run_command("clients", "create", "shop", "--scope", "users:read", "--json", **settings))
        credentials = {"CLIENT_ID": client["client_id"], "CLIENT_SECRET": client["client_secret"]}
        resource_server = stack.enter_context(
            run_app("examples.resource_server:app", free_port(), folder / "other.log", ISSUER=url, **credentials)
        )
        wait_until(lambda: "Uvicorn running" in resource_server.log)
        sign_up = httpx.post(f"{url}/auth/signup", json=CREDENTIALS).json()
        httpx.post(f"{url}/auth/activate", json={"token": token_of(sign_up["activation_url"])}).raise_for_status()
        yield Pair(issuer, resource_server, keys, settings)


@pytest.fixture
def ana(pair: Pair) -> LoggedIn:
    return pair.log_in()


def test_a_token_of_the_issuer_is_understood(pair: Pair, ana: LoggedIn) -> None:
    response = pair.whoami(ana.access_token)

    assert response.status_code == 200
    claims = jwt.decode(ana.access_token, options={"verify_signature": False})
    assert response.json() == {"user_id": ana.user_id, "session_id": claims["sid"]}


def test_a_token_for_one_of_the_two_is_refused_by_the_other(pair: Pair, ana: LoggedIn) -> None:
    for_issuer = pair.log_in(resource="")

    statuses = [
        httpx.get(f"{pair.issuer.url}/auth/me", headers=for_issuer.bearer).status_code,
        pair.whoami(for_issuer.access_token).status_code,
        httpx.get(f"{pair.issuer.url}/auth/me", headers=ana.bearer).status_code,
        pair.whoami(ana.access_token).status_code,
    ]

    assert statuses == [200, 401, 401, 200]


def test_without_a_token_it_asks_for_one(pair: Pair) -> None:
    response = httpx.get(f"{pair.resource_server.url}/whoami")

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def test_what_the_issuer_did_not_sign_for_this_audience_is_refused(pair: Pair, ana: LoggedIn) -> None:
    ours = load_keys(pair.keys)[0][0]
    claims = jwt.decode(ana.access_token, options={"verify_signature": False})

    def sign(key: Any = ours.signing, *, algorithm: str = "ES256", typ: str = "at+jwt", **changes: Any) -> str:
        return jwt.encode(claims | changes, key, algorithm, {"typ": typ, "kid": ours.id})

    forgeries = {
        "wrong key": sign(generate_private_key(SECP256R1())),
        "no signature": sign(None, algorithm="none"),
        "a secret": sign(b"x" * 32, algorithm="HS256"),
        "wrong typ": sign(typ="JWT"),
        "wrong issuer": sign(iss="http://elsewhere.example.com"),
        "wrong audience": sign(aud="another-service"),
        "expired": sign(exp=int(time.time()) - 10),
        "a refresh token": ana.refresh_token,
        "garbage": "garbage",
    }

    assert pair.whoami(sign()).status_code == 200
    assert {name: pair.whoami(token).status_code for name, token in forgeries.items()} == dict.fromkeys(forgeries, 401)


def test_tokens_with_made_up_keys_do_not_make_it_call_the_issuer_each_time(pair: Pair, ana: LoggedIn) -> None:
    pair.whoami(ana.access_token)
    before, started_at = pair.count_key_requests(), time.monotonic()

    for number in range(50):
        stray = jwt.encode({}, b"x" * 32, "HS256", {"typ": "at+jwt", "kid": str(number)})
        assert pair.whoami(stray).status_code == 401

    assert pair.count_key_requests() - before <= 1 + (time.monotonic() - started_at) / 2


def test_after_a_rotation_old_and_new_tokens_are_understood(pair: Pair, ana: LoggedIn) -> None:
    """The new key is so old that it signs as soon as the issuer, which goes on running, has looked at its files."""
    new, _ = rotate_ago(pair.keys, SIGNS_AFTER)
    wait_until(lambda: jwt.get_unverified_header(pair.log_in().access_token)["kid"] == new)
    new_token = pair.log_in().access_token

    wait_until(lambda: pair.whoami(new_token).status_code == 200)

    assert pair.whoami(ana.access_token).status_code == 200


class TestProfile:
    def test_it_reads_users_with_its_own_credentials_and_one_token(self, pair: Pair, ana: LoggedIn) -> None:
        before = pair.issuer.log.count("POST /auth/token 200")

        responses = [pair.profile(ana.access_token) for _ in range(3)]

        expected = {"user_id": ana.user_id, "email": CREDENTIALS["email"], "name": None}
        assert [(response.status_code, response.json()) for response in responses] == [(200, expected)] * 3
        assert pair.issuer.log.count("POST /auth/token 200") - before == 1

    def test_its_own_token_is_nobodys_log_in(self, pair: Pair) -> None:
        client = json.loads(
            run_command("clients", "create", "other", "--scope", "users:read", "--json", **pair.settings)
        )
        form = {"grant_type": "client_credentials", "resource": RESOURCE, **client}
        token = httpx.post(f"{pair.issuer.url}/auth/token", data=form).json()["access_token"]

        assert pair.whoami(token).status_code == 401

    def test_once_it_is_revoked_it_reads_nothing_more(self, pair: Pair, ana: LoggedIn) -> None:
        assert pair.profile(ana.access_token).status_code == 200

        run_command("clients", "revoke", "shop", **pair.settings)

        assert pair.profile(ana.access_token).status_code == 502
        assert pair.whoami(ana.access_token).status_code == 200
