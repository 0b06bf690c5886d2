"""Clients of OAuth as others wrote them, unmodified, against the service as people run it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest

from tests.support.processes import Running, run_command, run_service
from tests.support.steps import PASSWORD, token_of

pytestmark = pytest.mark.slow

EMAIL = "ana@example.com"
EXPIRED = {"expires_in": -1, "expires_at": 1}


@dataclass(frozen=True)
class Issuer:
    running: Running
    client_id: str
    client_secret: str
    metadata: dict[str, Any]

    def url(self, path: str) -> str:
        return f"{self.running.url}{path}"

    @property
    def token_url(self) -> str:
        return str(self.metadata["token_endpoint"])


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    folder = tmp_path_factory.mktemp("issuer")
    settings = {"DATABASE_URL": f"sqlite:///{folder}/users.db", "JWT_KEYS_DIR": str(folder / "keys")}
    with run_service(folder, AUTH_BCRYPT_ROUNDS="4", **settings) as running:
        running.wait_until_ready()
        scopes = ("--scope", "users:read", "--scope", "tokens:introspect")
        client = json.loads(run_command("clients", "create", "gateway", *scopes, "--json", **settings))
        sign_up = httpx.post(f"{running.url}/auth/signup", json={"email": EMAIL, "password": PASSWORD}).json()
        link = {"token": token_of(sign_up["activation_url"])}
        httpx.post(f"{running.url}/auth/activate", json=link).raise_for_status()
        metadata = httpx.get(f"{running.url}/.well-known/oauth-authorization-server").json()
        yield Issuer(running, client["client_id"], client["client_secret"], metadata)


@pytest.fixture(autouse=True)
def _plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


class TestAuthlib:
    @pytest.mark.parametrize("auth_method", ["none", "client_secret_basic", "client_secret_post"])
    def test_logs_in_and_renews_by_itself(self, issuer: Issuer, auth_method: str) -> None:
        from authlib.integrations.requests_client import OAuth2Session

        renewed: list[dict[str, Any]] = []
        session = OAuth2Session(
            "my-app",
            token_endpoint=issuer.token_url,
            token_endpoint_auth_method=auth_method,
            update_token=lambda token, **_: renewed.append(token),
        )
        token = session.fetch_token(username=EMAIL, password=PASSWORD, grant_type="password")
        session.token = dict(token) | EXPIRED

        response = session.get(issuer.url("/auth/me"))

        assert response.json()["email"] == EMAIL
        assert [each["refresh_token"] != token["refresh_token"] for each in renewed] == [True]

    def test_raises_what_is_refused_and_keeps_its_token(self, issuer: Issuer) -> None:
        from authlib.integrations.base_client.errors import OAuthError
        from authlib.integrations.requests_client import OAuth2Session

        session = OAuth2Session("my-app", token_endpoint=issuer.token_url, token_endpoint_auth_method="none")
        token = session.fetch_token(username=EMAIL, password=PASSWORD, grant_type="password")

        with pytest.raises(OAuthError, match="invalid_grant"):
            session.fetch_token(username=EMAIL, password="a-wrong-password", grant_type="password")
        with pytest.raises(OAuthError, match="invalid_grant"):
            session.refresh_token(issuer.token_url, refresh_token="garbage")
        with pytest.raises(OAuthError, match="invalid_scope"):
            session.fetch_token(username=EMAIL, password=PASSWORD, grant_type="password", scope="users:read")

        assert session.token["access_token"] == token["access_token"]

    @pytest.mark.filterwarnings("ignore:The httpx module is deprecated")
    @pytest.mark.parametrize("auth_method", ["client_secret_basic", "client_secret_post"])
    async def test_gets_a_token_of_a_service_introspects_and_revokes(self, issuer: Issuer, auth_method: str) -> None:
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        person = log_in(issuer)
        async with AsyncOAuth2Client(
            issuer.client_id, issuer.client_secret, token_endpoint_auth_method=auth_method
        ) as client:
            await client.fetch_token(issuer.token_url, grant_type="client_credentials", scope="users:read")
            users = await client.get(issuer.url("/api/users"))
            endpoint = issuer.metadata["introspection_endpoint"]
            before = await client.introspect_token(endpoint, token=person["access_token"])
            revoked = await client.revoke_token(issuer.metadata["revocation_endpoint"], person["refresh_token"])
            after = await client.introspect_token(endpoint, token=person["access_token"])

        assert (users.status_code, revoked.status_code) == (200, 200)
        assert (before.json()["active"], after.json()) == (True, {"active": False})


class TestOauthlib:
    def test_logs_in_and_renews_by_itself(self, issuer: Issuer) -> None:
        from oauthlib.oauth2 import LegacyApplicationClient
        from requests_oauthlib import OAuth2Session

        renewed: list[dict[str, Any]] = []
        session = OAuth2Session(
            client=LegacyApplicationClient(client_id="my-app"),
            auto_refresh_url=issuer.token_url,
            token_updater=renewed.append,
        )
        session.fetch_token(issuer.token_url, username=EMAIL, password=PASSWORD)
        session.token = session.token | EXPIRED

        response = session.get(issuer.url("/auth/me"))

        assert response.json()["email"] == EMAIL
        assert len(renewed) == 1

    def test_raises_what_is_refused(self, issuer: Issuer) -> None:
        from oauthlib.oauth2 import BackendApplicationClient, LegacyApplicationClient
        from oauthlib.oauth2.rfc6749.errors import InvalidClientError, InvalidGrantError
        from requests_oauthlib import OAuth2Session

        person = OAuth2Session(client=LegacyApplicationClient(client_id="my-app"))
        service = OAuth2Session(client=BackendApplicationClient(client_id=issuer.client_id))

        with pytest.raises(InvalidGrantError):
            person.fetch_token(issuer.token_url, username=EMAIL, password="a-wrong-password")
        with pytest.raises(InvalidClientError):
            service.fetch_token(issuer.token_url, client_secret="wrong")

    def test_gets_a_token_of_a_service(self, issuer: Issuer) -> None:
        from oauthlib.oauth2 import BackendApplicationClient
        from requests_oauthlib import OAuth2Session

        session = OAuth2Session(client=BackendApplicationClient(client_id=issuer.client_id))
        session.fetch_token(issuer.token_url, client_secret=issuer.client_secret)

        assert session.get(issuer.url("/api/users")).status_code == 200


def test_pyjwt_verifies_what_an_http_client_was_given(issuer: Issuer) -> None:
    token = log_in(issuer)["access_token"]

    key = jwt.PyJWKClient(issuer.metadata["jwks_uri"]).get_signing_key_from_jwt(token)
    claims = jwt.decode(token, key, ["ES256"], audience="user-auth-service", issuer=issuer.metadata["issuer"])

    assert claims["client_id"] == "first-party"


def log_in(issuer: Issuer) -> dict[str, Any]:
    form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
    answer: dict[str, Any] = httpx.post(issuer.token_url, data=form).json()
    return answer
