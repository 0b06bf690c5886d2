"""Access tokens: what we signed is known everywhere, and nothing else is anywhere."""

import base64
import hmac
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from httpx import Response
from joserfc import jwk as joserfc_jwk
from joserfc import jwt as joserfc_jwt
from jwt.algorithms import ECAlgorithm

from src.core.keys import JWKS_MAX_AGE, SIGNS_AFTER, Algorithm, Key, load_keys
from src.db.base import utc_now
from tests.support.keys import ALGORITHMS, rotate_ago
from tests.support.service import METHODS, Service, StartService
from tests.support.steps import (
    LoggedIn,
    bearer,
    create_account,
    create_client,
    log_in,
    me,
    read_tokens,
    refresh,
    service_token,
    sign_up,
    token_of,
)

DAY = timedelta(days=1)

# The ways to start or continue a session. Think twice before you add one.
MINTS_A_SESSION = {"post /auth/login", "post /auth/login/second-factor", "post /auth/token", "post /auth/refresh"}


@pytest.fixture
async def ana(service: Service) -> LoggedIn:
    await create_account(service)
    return await log_in(service)


async def ask_with(service: Service, token: str, path: str = "/auth/me") -> Response:
    return await service.client.get(path, headers=bearer(token))


REFUSED = (401, "INVALID_ACCESS_TOKEN", 'Bearer error="invalid_token"')


def outcome(response: Response) -> tuple[int, str | None, str | None]:
    return response.status_code, response.json().get("code"), response.headers.get("www-authenticate")


NOBODY = str(uuid4())
NULL = object()  # in a forged token: the claim is there, and null


def encode(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part, default=lambda _: None).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True)
class Forger:
    """Knows a session, and has what an attacker could have: the public key, a key of their own, a server.

    Signs by hand, as no library would. Some forgeries are signed by our own key: those show that it is not enough.
    """

    ours: Key
    refresh_secret: Key
    claims: dict[str, Any]
    url: str
    own = generate_private_key(SECP256R1())

    @property
    def public_pem(self) -> bytes:
        pem: bytes = self.ours.verifying.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    @property
    def own_jwk(self) -> dict[str, Any]:
        return ECAlgorithm.to_jwk(self.own.public_key(), as_dict=True) | {"kid": self.ours.id}

    def sign(self, *, key: Any = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that is good but for these changes; `None` leaves a field out."""
        text = self.text(header, **claims)
        signature = jwt.get_algorithm_by_name("ES256").sign(text.encode(), key or self.ours.signing)
        return f"{text}.{encode(signature)}"

    def sign_hs256(self, key: bytes, **header: Any) -> str:
        text = self.text({"alg": "HS256"} | header)
        return f"{text}.{encode(hmac.digest(key, text.encode(), 'sha256'))}"

    def text(self, header: dict[str, Any] | None = None, **claims: Any) -> str:
        whole_header = {"alg": "ES256", "typ": "at+jwt", "kid": self.ours.id} | (header or {})
        return ".".join(encode(drop_none(part)) for part in (whole_header, self.claims | claims))


def drop_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def seconds_from_now(seconds: float) -> int:
    return int(utc_now().timestamp() + seconds)


@pytest.fixture
def trap() -> Iterator[socket.socket]:
    """A server that nobody should call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        yield listener


@pytest.fixture
def forger(service: Service, ana: LoggedIn, trap: socket.socket) -> Forger:
    keys = service.signer.keys
    claims = jwt.decode(ana.access_token, options={"verify_signature": False})
    return Forger(
        keys.access_signer(), keys.refresh_signer(), claims, f"http://127.0.0.1:{trap.getsockname()[1]}/keys.json"
    )


Forge = Callable[[Forger], str]

ALGORITHM: dict[str, Forge] = {
    "none, unsigned": lambda f: f.text({"alg": "none"}) + ".",
    "None, unsigned": lambda f: f.text({"alg": "None"}) + ".",
    "none, signed": lambda f: f.sign(header={"alg": "none"}),
    "none, with the signature of a good token": lambda f: f"{f.text({'alg': 'none'})}.{f.sign().split('.')[2]}",
    "HS256 by the PEM of the public key": lambda f: f.sign_hs256(f.public_pem),
    "HS256 by the JWK of the public key": lambda f: f.sign_hs256(json.dumps(f.ours.public_jwk()).encode()),
    "HS256 by nothing": lambda f: f.sign_hs256(b""),
    "HS256 by the secret of refresh tokens": lambda f: f.sign_hs256(f.refresh_secret.signing, kid=f.refresh_secret.id),  # type: ignore[arg-type]  # it is bytes
    "HS256 named, ES256 used": lambda f: f.sign(header={"alg": "HS256"}),
    "another spelling": lambda f: f.sign(header={"alg": "es256"}),
    "missing": lambda f: f.sign(header={"alg": None}),
}
KEY: dict[str, Forge] = {
    "wrong, with the right kid": lambda f: f.sign(key=f.own),
    "unknown kid": lambda f: f.sign(header={"kid": "unknown"}),
    "unknown kid, wrong key": lambda f: f.sign(key=f.own, header={"kid": "unknown"}),
    "missing kid": lambda f: f.sign(header={"kid": None}),
    "empty kid": lambda f: f.sign(header={"kid": ""}),
    "kid of a refresh secret": lambda f: f.sign(header={"kid": f.refresh_secret.id}),
    "kid that is a path": lambda f: f.sign(key=f.own, header={"kid": "../../../../dev/null"}),
    "kid that is no string": lambda f: f.sign(header={"kid": 1}),
    "own, in the header": lambda f: f.sign(key=f.own, header={"jwk": f.own_jwk}),
    "own, behind jku": lambda f: f.sign(key=f.own, header={"jku": f.url}),
    "own, behind x5u": lambda f: f.sign(key=f.own, header={"x5u": f.url}),
    "own, in x5c": lambda f: f.sign(key=f.own, header={"x5c": ["MIIB"]}),
}
HEADER: dict[str, Forge] = {
    "jku": lambda f: f.sign(header={"jku": f.url}),
    "x5u": lambda f: f.sign(header={"x5u": f.url}),
    "jwk": lambda f: f.sign(header={"jwk": f.ours.public_jwk()}),
    "crit": lambda f: f.sign(header={"crit": ["exp"], "exp": 1}),
    "crit of what nobody knows": lambda f: f.sign(header={"crit": ["x"], "x": 1}),
    "crit and b64": lambda f: f.sign(header={"crit": ["b64"], "b64": False}),
    "zip": lambda f: f.sign(header={"zip": "DEF"}),
    "typ JWT": lambda f: f.sign(header={"typ": "JWT"}),
    "typ of a refresh token": lambda f: f.sign(header={"typ": "rt+jwt"}),
    "no typ": lambda f: f.sign(header={"typ": None}),
}
CLAIMS: dict[str, Forge] = {
    "another issuer": lambda f: f.sign(iss="https://elsewhere.example.com"),
    "an issuer that begins like us": lambda f: f.sign(iss=f.claims["iss"] + "/"),
    "another audience": lambda f: f.sign(aud="another-service"),
    "no audience": lambda f: f.sign(aud=[]),
    "expired": lambda f: f.sign(exp=seconds_from_now(-1)),
    "an expiry that is no number": lambda f: f.sign(exp="tomorrow"),
    "not yet valid": lambda f: f.sign(nbf=seconds_from_now(60)),
    "a user that is none": lambda f: f.sign(sub="ana"),
    "a session that is none": lambda f: f.sign(sid="current"),
    "a session that is a number": lambda f: f.sign(sid=1),
    "a session that never was": lambda f: f.sign(sid=str(uuid4())),
    "somebody else's session": lambda f: f.sign(sub=str(uuid4())),
    "a client that is a service": lambda f: f.sign(client_id=NOBODY),
    "another user, under the old signature": lambda f: f"{f.text(sub=str(uuid4()))}.{f.sign().split('.')[2]}",
} | {
    f"missing {name}": lambda f, name=name: f.sign(**{name: None})
    for name in ("iss", "aud", "sub", "sid", "iat", "exp", "jti")
}
SERVICE_CLAIMS: dict[str, Forge] = {
    "no client": lambda f: f.sign(client_id=None),
    "a client that is null": lambda f: f.sign(client_id=NULL),
    "a client that is none": lambda f: f.sign(client_id="reports", sub="reports"),
    "a client that is a number": lambda f: f.sign(client_id=1, sub="1"),
    "a client that never was": lambda f: f.sign(client_id=NOBODY, sub=NOBODY),
    "another subject": lambda f: f.sign(sub=str(uuid4())),
    "no subject": lambda f: f.sign(sub=None),
    "a session too": lambda f: f.sign(sid=str(uuid4())),
    "no scope": lambda f: f.sign(scope=None),
    "a scope that is null": lambda f: f.sign(scope=NULL),
    "a scope that is a number": lambda f: f.sign(scope=1),
    "scopes in a list": lambda f: f.sign(scope=["users:read"]),
    "scopes as keys": lambda f: f.sign(scope={"users:read": True}),
    "expired": lambda f: f.sign(exp=seconds_from_now(-1)),
    "wrong key": lambda f: f.sign(key=f.own),
}
FORM: dict[str, Forge] = {
    "empty": lambda _: "",
    "garbage": lambda _: "garbage",
    "garbage with dots": lambda _: "a.b.c",
    "dots": lambda _: "..",
    "cut off in the signature": lambda f: f.sign()[:-10],
    "cut off before the signature": lambda f: f.text(),
    "no signature": lambda f: f.text() + ".",
    "a part too many": lambda f: f.sign() + ".e30",
    "an encrypted token's five parts": lambda f: f.sign() + ".e30.e30",
    "a header that is no object": lambda f: encode([]) + "." + f.sign().partition(".")[2],
    "a header that nests": lambda f: encode(b"[" * 10_000) + "." + f.sign().partition(".")[2],
    "twice": lambda f: f"{f.sign()} {f.sign()}",
}


async def test_the_forgers_token_is_good_until_it_is_changed(service: Service, forger: Forger) -> None:
    response = await ask_with(service, forger.sign())

    assert response.status_code == 200


@pytest.mark.parametrize(
    "forgeries",
    [
        pytest.param(table, id=name)
        for name, table in {"alg": ALGORITHM, "key": KEY, "header": HEADER, "claims": CLAIMS, "form": FORM}.items()
    ],
)
async def test_a_forged_token_is_refused_and_nobody_is_asked_about_it(
    service: Service, forger: Forger, trap: socket.socket, forgeries: dict[str, Forge]
) -> None:
    outcomes = {name: outcome(await ask_with(service, forge(forger))) for name, forge in forgeries.items()}

    assert outcomes == dict.fromkeys(forgeries, REFUSED)
    with pytest.raises(BlockingIOError):  # nobody has called
        trap.accept()


async def test_a_token_from_before_there_was_a_client_id_is_still_known(service: Service, forger: Forger) -> None:
    assert (await ask_with(service, forger.sign(client_id=None))).status_code == 200


async def test_a_forged_token_of_a_service_is_refused_even_under_our_own_signature(
    service: Service, forger: Forger
) -> None:
    token = await service_token(service, await create_client(service, "users:read"))
    forger = replace(forger, claims=jwt.decode(token, options={"verify_signature": False}))
    unchanged = await ask_with(service, forger.sign(), "/api/users")

    outcomes = {
        name: outcome(await ask_with(service, forge(forger), "/api/users")) for name, forge in SERVICE_CLAIMS.items()
    }

    assert unchanged.status_code == 200
    assert outcomes == dict.fromkeys(SERVICE_CLAIMS, REFUSED)


class TestOtherTokens:
    async def test_a_refresh_token_is_no_access_token_on_any_route(self, service: Service, ana: LoggedIn) -> None:
        paths = service.app.openapi()["paths"]
        protected = [
            (method, path)
            for path, item in paths.items()
            for method in METHODS
            if any("OAuth2" in scheme for scheme in item.get(method, {}).get("security", []))
        ]
        headers = {"Authorization": f"Bearer {ana.refresh_token}"}

        for method, path in protected:
            url = path.format_map(dict.fromkeys(("user_id", "session_id"), ana.user_id))
            assert outcome(await service.client.request(method, url, headers=headers)) == REFUSED

        assert {"get /auth/me", "delete /auth/sessions/{session_id}", "get /api/users/{user_id}"} <= {
            f"{method} {path}" for method, path in protected
        }
        assert (await me(service, ana)).status_code == 200

    async def test_an_access_token_is_no_refresh_token(self, service: Service, ana: LoggedIn) -> None:
        for path in ("/auth/refresh", "/auth/logout"):
            response = await service.client.post(path, json={"refresh_token": ana.access_token})

            assert response.status_code == 401
            assert response.json()["code"] == "INVALID_REFRESH_TOKEN"

    async def test_a_one_time_token_is_no_access_token(self, service: Service) -> None:
        token = token_of((await sign_up(service))["activation_url"])

        response = await ask_with(service, token)

        assert outcome(response) == REFUSED

    async def test_a_token_in_the_address_is_not_looked_at(self, service: Service, ana: LoggedIn) -> None:
        for name in ("access_token", "token", "authorization"):
            response = await service.client.get("/auth/me", params={name: ana.access_token})

            assert outcome(response) == (401, "UNAUTHORIZED", "Bearer")

    async def test_another_scheme_is_refused(self, service: Service, ana: LoggedIn) -> None:
        for scheme in ("Basic", "DPoP", "Token", ""):
            headers = {"Authorization": f"{scheme} {ana.access_token}"}

            assert outcome(await service.client.get("/auth/me", headers=headers)) == REFUSED

    async def test_the_name_of_the_scheme_may_be_in_any_case(self, service: Service, ana: LoggedIn) -> None:
        response = await service.client.get("/auth/me", headers={"Authorization": f"bEARER {ana.access_token}"})

        assert response.status_code == 200


class TestOptionalToken:
    async def test_a_bad_token_does_not_make_one_a_stranger(
        self, service: Service, ana: LoggedIn, forger: Forger
    ) -> None:
        expired = forger.sign(exp=seconds_from_now(-1))
        for authorization in (f"Bearer {expired}", "Bearer garbage", "Bearer ", "Bearer", "Basic YTpi", ""):
            headers = {"Authorization": authorization}

            assert outcome(await service.client.get(f"/api/users/{ana.user_id}", headers=headers)) == REFUSED


def mints_a_session(schema: Any, components: dict[str, Any]) -> bool:
    """Whether an answer of this schema has an access token anywhere in it."""
    if isinstance(schema, list):
        return any(mints_a_session(part, components) for part in schema)
    if not isinstance(schema, dict):
        return False
    if "$ref" in schema:
        _, _, kind, name = schema["$ref"].split("/")
        return mints_a_session(components[kind][name], components)
    return "access_token" in schema.get("properties", {}) or mints_a_session(list(schema.values()), components)


def test_only_these_operations_mint_a_session(service: Service) -> None:
    contract = service.app.openapi()
    components = contract["components"]

    minting = {
        f"{method} {path}"
        for path, item in contract["paths"].items()
        for method in METHODS
        if method in item and mints_a_session(item[method]["responses"], components)
    }

    assert minting == MINTS_A_SESSION


class TestDiscovery:
    @pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # RFC 9864 renames it; every library knows the old name
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    async def test_another_library_verifies_our_tokens_from_the_jwks_alone(
        self, start_service: StartService, tmp_path: Path, algorithm: Algorithm
    ) -> None:
        service = await start_service(jwt_algorithm=algorithm, jwt_keys_dir=tmp_path / "keys")
        await create_account(service)
        ana = await log_in(service)

        jwks = (await service.client.get("/.well-known/jwks.json")).json()
        keys = joserfc_jwk.KeySet.import_key_set(jwks)
        token = joserfc_jwt.decode(ana.access_token, keys, algorithms=[algorithm])
        rules = joserfc_jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": "http://localhost:8000"},
            aud={"essential": True, "value": "user-auth-service"},
            sub={"essential": True, "value": ana.user_id},
            exp={"essential": True},
        )
        rules.validate(token.claims)

        assert token.header == {"alg": algorithm, "typ": "at+jwt", "kid": jwks["keys"][0]["kid"]}
        assert token.claims["exp"] - token.claims["iat"] == 15 * 60

    async def test_an_access_token_tells_nothing_else_of_the_person(self, ana: LoggedIn) -> None:
        claims = jwt.decode(ana.access_token, options={"verify_signature": False})

        assert claims.keys() == {"iss", "aud", "sub", "client_id", "sid", "auth_time", "amr", "iat", "exp", "jti"}

    @pytest.mark.parametrize("path", ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server"])
    async def test_it_may_be_cached_as_long_as_a_new_key_waits_and_no_longer(self, service: Service, path: str) -> None:
        response = await service.client.get(path)

        assert response.headers["cache-control"] == f"public, max-age={int(JWKS_MAX_AGE.total_seconds())}"

    async def test_the_metadata_is_that_of_rfc_8414(self, start_service: StartService) -> None:
        service = await start_service(server_public_url="http://test", jwt_issuer="https://id.example.com")

        metadata = (await service.client.get("/.well-known/oauth-authorization-server")).json()

        assert metadata["issuer"] == "https://id.example.com"
        assert metadata["token_endpoint_auth_methods_supported"] == [
            "none",
            "client_secret_basic",
            "client_secret_post",
        ]
        assert metadata["revocation_endpoint_auth_methods_supported"] == [
            "none",
            "client_secret_basic",
            "client_secret_post",
        ]
        assert metadata["introspection_endpoint_auth_methods_supported"] == [
            "client_secret_basic",
            "client_secret_post",
            "Bearer",
        ]
        assert metadata["grant_types_supported"] == ["password", "refresh_token", "client_credentials"]
        assert metadata["scopes_supported"] == ["users:read", "users:write", "audit:read", "tokens:introspect"]
        assert metadata["response_types_supported"] == ["none"]

    async def test_the_addresses_in_the_metadata_answer(self, start_service: StartService) -> None:
        service = await start_service(server_public_url="http://test")
        user_id = await create_account(service)
        form = {"grant_type": "password", "username": "ana@example.com", "password": "strong-pass-12-chars"}

        metadata = (await service.client.get("/.well-known/oauth-authorization-server")).json()
        keys = await service.client.get(metadata["jwks_uri"])
        documentation = await service.client.get(metadata["service_documentation"])
        tokens = read_tokens(await service.client.post(metadata["token_endpoint"], data=form))

        assert keys.json()["keys"]
        assert documentation.status_code == 200
        assert tokens.user_id == user_id
        assert jwt.decode(tokens.access_token, options={"verify_signature": False})["iss"] == metadata["issuer"]


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def kids(service: Service) -> list[str]:
    jwks = (await service.client.get("/.well-known/jwks.json")).json()
    return [key["kid"] for key in jwks["keys"]]


async def test_keys_rotate_and_are_retired_and_nobody_is_logged_out(
    start_service: StartService, tmp_path: Path
) -> None:
    """Each `start_service` is another worker on the same database and keys, which saves waiting for the first to look.

    The ages of the keys are those that a person would see who does each step when `keys retire` allows it.
    """
    old, old_secret = rotate_ago(tmp_path, 30 * DAY)
    service = await start_service(jwt_keys_dir=tmp_path)
    await create_account(service)
    busy, quiet = await log_in(service), await log_in(service)
    assert (kid_of(busy.access_token), kid_of(busy.refresh_token)) == (old, old_secret)

    new, new_secret = rotate_ago(tmp_path, SIGNS_AFTER)  # the new keys begin to sign
    service = await start_service(jwt_keys_dir=tmp_path)
    assert await kids(service) == [old, new]
    assert (await me(service, busy)).status_code == 200
    assert (await me(service, quiet)).status_code == 200
    busy = read_tokens(await refresh(service, busy.refresh_token))
    assert (kid_of(busy.access_token), kid_of(busy.refresh_token)) == (new, new_secret)

    retire(tmp_path, old)  # the last access token that it signed has expired
    service = await start_service(jwt_keys_dir=tmp_path)
    assert await kids(service) == [new]
    assert outcome(await me(service, quiet)) == REFUSED
    quiet = read_tokens(await refresh(service, quiet.refresh_token))
    assert (await me(service, quiet)).status_code == 200

    retire(tmp_path, old_secret)  # no session that was idle for so long is left
    service = await start_service(jwt_keys_dir=tmp_path)
    for session in (busy, quiet):
        assert (await me(service, session)).status_code == 200
        assert (await me(service, read_tokens(await refresh(service, session.refresh_token)))).status_code == 200


def retire(folder: Path, key_id: str) -> None:
    [key] = [key for keys in load_keys(folder) for key in keys if key.id == key_id]
    key.path.unlink()
