"""OAuth 2.0: grants, refusals, revocation, introspection and resources, as its libraries expect them."""

import asyncio
import re
from base64 import b64encode
from datetime import timedelta
from typing import Any

import jwt
import pytest
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from httpx import Response
from joserfc.jwk import KeySet
from sqlalchemy import select, update

from src.api.errors import OAUTH_PATHS
from src.core.tokens import FIRST_PARTY_CLIENT_ID
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import AuditEventModel, EventKind, SessionModel
from src.services.clients import ClientSecret
from tests.support.databases import execute
from tests.support.factories import add_logged_in
from tests.support.service import Service, StartService, clients_of, connect
from tests.support.steps import (
    PASSWORD,
    LoggedIn,
    bearer,
    create_account,
    create_admin,
    create_client,
    log_out,
    me,
    post_client_credentials,
    read_tokens,
    refresh,
    service_token,
)

SHOP = "https://shop.example.com"
PASSWORD_GRANT: dict[str, Any] = {"grant_type": "password", "username": "ana@example.com", "password": PASSWORD}


@pytest.fixture
async def service(start_service: StartService) -> Service:
    return await start_service(jwt_resources=f"{SHOP},https://blog.example.com")


@pytest.fixture
async def ana(service: Service) -> LoggedIn:
    return await add_logged_in(service, "ana@example.com")


@pytest.fixture
async def gateway(service: Service) -> ClientSecret:
    return await create_client(service, "tokens:introspect")


async def grant(service: Service, **form: Any) -> Response:
    return await service.client.post("/auth/token", data=form)


async def renew(service: Service, who: LoggedIn, **form: Any) -> Response:
    return await grant(service, grant_type="refresh_token", refresh_token=who.refresh_token, **form)


async def revoke(service: Service, token: str, headers: dict[str, str] | None = None, **form: str) -> Response:
    return await service.client.post("/auth/revoke", data={"token": token} | form, headers=headers)


async def introspect(service: Service, token: str, client: ClientSecret) -> dict[str, Any]:
    credentials = {"client_id": str(client.client_id), "client_secret": client.client_secret}
    response = await service.client.post("/auth/introspect", data={"token": token} | credentials)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def basic(username: object, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"}


def oauth_refusal(response: Response) -> tuple[int, str, str]:
    """The status, OAuth's word and ours; what a refusal must have besides."""
    body = response.json()
    assert body.keys() == {"detail", "code", "details", "error", "error_description"}
    assert re.fullmatch(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+", body["error_description"])
    return response.status_code, body["error"], body["code"]


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


class TestRefreshGrant:
    async def test_it_exchanges_the_token_as_the_json_route_does(self, service: Service, ana: LoggedIn) -> None:
        renewed = read_tokens(await renew(service, ana))

        assert renewed.refresh_token != ana.refresh_token
        assert (await me(service, renewed)).status_code == 200

    async def test_a_replay_is_an_invalid_grant_and_ends_the_session(self, start_service: StartService) -> None:
        service = await start_service(auth_refresh_grace_seconds=0)
        ana = await add_logged_in(service, "ana@example.com")
        renewed = read_tokens(await renew(service, ana))

        response = await renew(service, ana)

        assert oauth_refusal(response) == (400, "invalid_grant", "INVALID_REFRESH_TOKEN")
        assert (await me(service, renewed)).status_code == 401


class TestRefusals:
    @pytest.mark.parametrize(
        ("form", "refusal"),
        [
            (PASSWORD_GRANT, (400, "invalid_grant", "INVALID_CREDENTIALS")),
            ({"grant_type": "implicit"}, (400, "unsupported_grant_type", "UNSUPPORTED_GRANT_TYPE")),
            ({"username": "ana@example.com"}, (400, "invalid_request", "VALIDATION_ERROR")),
            ({"grant_type": ""}, (400, "invalid_request", "VALIDATION_ERROR")),
            ({"grant_type": "refresh_token"}, (400, "invalid_request", "VALIDATION_ERROR")),
            (PASSWORD_GRANT | {"password": ""}, (400, "invalid_request", "VALIDATION_ERROR")),
            (PASSWORD_GRANT | {"username": "ana"}, (400, "invalid_request", "VALIDATION_ERROR")),
            (PASSWORD_GRANT | {"scope": "users:read"}, (400, "invalid_scope", "INVALID_SCOPE")),
            (PASSWORD_GRANT | {"resource": "https://else.where"}, (400, "invalid_target", "INVALID_TARGET")),
            (PASSWORD_GRANT | {"resource": [SHOP, SHOP]}, (400, "invalid_target", "INVALID_TARGET")),
            ({"grant_type": "client_credentials"}, (401, "invalid_client", "INVALID_CLIENT")),
        ],
    )
    async def test_of_a_grant_have_the_words_of_rfc_6749(
        self, service: Service, form: dict[str, Any], refusal: tuple[int, str, str]
    ) -> None:
        assert oauth_refusal(await grant(service, **form)) == refusal

    @pytest.mark.parametrize(
        ("body", "media_type"),
        [
            (b'{"grant_type": "password"}', "application/json"),
            (b"grant_type=password", "text/plain"),
            (b"", "application/x-www-form-urlencoded"),
            (b"junk", "multipart/form-data"),
        ],
    )
    async def test_of_a_body_that_is_no_such_form_are_an_invalid_request(
        self, service: Service, body: bytes, media_type: str
    ) -> None:
        for path in ("/auth/token", "/auth/revoke", "/auth/introspect"):
            response = await service.client.post(path, content=body, headers={"Content-Type": media_type})

            assert oauth_refusal(response)[:2] == (400, "invalid_request")

    @pytest.mark.parametrize("repeated", [{"password": [PASSWORD] * 2}, {"unknown": ["1", "2"]}])
    async def test_of_a_parameter_that_is_sent_twice_are_an_invalid_request(
        self, service: Service, repeated: dict[str, list[str]]
    ) -> None:
        await create_account(service)

        response = await grant(service, **PASSWORD_GRANT | repeated)

        assert oauth_refusal(response) == (400, "invalid_request", "BAD_REQUEST")

    async def test_of_what_nobody_foresaw_are_a_server_error(self, service: Service) -> None:
        service.app.state.runtime = None

        assert oauth_refusal(await grant(service, **PASSWORD_GRANT)) == (500, "server_error", "INTERNAL_ERROR")

    async def test_of_a_person_ask_for_no_header_of_the_next_request(self, service: Service) -> None:
        assert "www-authenticate" not in (await grant(service, **PASSWORD_GRANT)).headers

    async def test_name_the_parameter_in_the_description(self, service: Service) -> None:
        response = await grant(service, grant_type="password", username="ana@example.com")

        assert response.json()["error_description"] == "password is required"

    async def test_by_limits_and_of_bodies_that_are_too_large_keep_their_status(
        self, start_service: StartService
    ) -> None:
        service = await start_service(rate_limit_requests_per_origin="1/1h")
        await grant(service, **PASSWORD_GRANT)

        limited = await grant(service, **PASSWORD_GRANT)
        large = await grant(service, grant_type="x" * 100_000)
        foreign = await service.client.post("/auth/token", data={}, headers={"Sec-Fetch-Site": "cross-site"})

        assert oauth_refusal(limited) == (429, "temporarily_unavailable", "TOO_MANY_REQUESTS")
        assert oauth_refusal(large) == (413, "invalid_request", "PAYLOAD_TOO_LARGE")
        assert oauth_refusal(foreign) == (403, "invalid_request", "FOREIGN_ORIGIN")

    async def test_elsewhere_have_no_words_of_oauth(self, service: Service) -> None:
        response = await refresh(service, "x")

        assert response.json().keys() == {"detail", "code", "details"}


class TestPublicClients:
    @pytest.mark.parametrize(
        "headers", [basic("my-app", ""), basic("my-app", "secret"), {"Authorization": "Basic !"}, {}]
    )
    async def test_need_not_be_known_to_log_somebody_in_or_to_refresh(
        self, service: Service, headers: dict[str, str]
    ) -> None:
        await create_account(service)
        form = PASSWORD_GRANT | {"client_id": "my-app", "scope": " "}

        tokens = read_tokens(await service.client.post("/auth/token", data=form, headers=headers))
        form = {"grant_type": "refresh_token", "refresh_token": tokens.refresh_token, "client_id": "my-app"}
        renewed = await service.client.post("/auth/token", data=form, headers=headers)

        assert renewed.status_code == 200


class TestRevocation:
    @pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
    async def test_of_either_token_ends_the_session(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn, kind: str
    ) -> None:
        response = await revoke(service, getattr(ana, kind), token_type_hint="no_such_hint")

        assert (response.status_code, response.content) == (200, b"")
        assert (await me(service, ana)).status_code == 401
        assert (await renew(service, ana)).status_code == 400
        assert await kinds_of_events(database) == [EventKind.LOG_OUT]

    async def test_of_a_refresh_token_that_was_used_ends_the_session_too(self, service: Service, ana: LoggedIn) -> None:
        renewed = read_tokens(await renew(service, ana))

        await revoke(service, ana.refresh_token)

        assert (await me(service, renewed)).status_code == 401

    async def test_of_anything_else_is_the_same_success_and_leaves_nothing(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        await log_out(service, ana)
        await service_token(service, gateway)
        before = await kinds_of_events(database)
        tokens = [ana.access_token, ana.refresh_token, "garbage", "é", await service_token(service, gateway)]

        responses = [await revoke(service, token) for token in tokens]

        assert [(each.status_code, each.content) for each in responses] == [(200, b"")] * len(tokens)
        assert await kinds_of_events(database) == [*before, EventKind.CLIENT_TOKEN]

    async def test_a_resource_server_cannot_log_out_whoever_sends_it_a_token(
        self, service: Service, ana: LoggedIn
    ) -> None:
        token = read_tokens(await renew(service, ana, resource=SHOP))

        response = await revoke(service, token.access_token)

        assert response.status_code == 200
        assert (await me(service, ana)).status_code == 200

    async def test_credentials_of_a_client_must_be_right_if_there_are_any(
        self, service: Service, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        id_, secret = str(gateway.client_id), gateway.client_secret

        wrong = [
            await revoke(service, ana.access_token, basic(id_, "wrong")),
            await revoke(service, ana.access_token, {"Authorization": "Basic !"}),
            await revoke(service, ana.access_token, client_id=id_, client_secret="wrong"),
            await revoke(service, ana.access_token, client_secret=secret),
        ]
        still_there = await me(service, ana)
        right = await revoke(service, ana.access_token, basic(id_, secret))

        assert [oauth_refusal(each) for each in wrong] == [(401, "invalid_client", "INVALID_CLIENT")] * 4
        assert {each.headers["www-authenticate"] for each in wrong} == {'Basic realm="clients"'}
        assert (still_there.status_code, right.status_code) == (200, 200)

    async def test_a_public_client_sends_its_id_as_basic_without_a_password(
        self, service: Service, ana: LoggedIn
    ) -> None:
        response = await revoke(service, ana.access_token, basic("my-app", ""))

        assert response.status_code == 200
        assert (await me(service, ana)).status_code == 401

    async def test_without_a_token_is_an_invalid_request(self, service: Service) -> None:
        assert oauth_refusal(await revoke(service, "")) == (400, "invalid_request", "VALIDATION_ERROR")


class TestIntrospection:
    async def test_an_access_token_of_a_person_tells_what_it_says(
        self, service: Service, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        answer = await introspect(service, ana.access_token, gateway)

        assert answer == {"active": True, "token_type": "Bearer"} | claims_of(ana.access_token)
        assert (answer["sub"], answer["client_id"]) == (ana.user_id, FIRST_PARTY_CLIENT_ID)

    async def test_an_access_token_of_a_service_tells_its_scopes(self, service: Service, gateway: ClientSecret) -> None:
        token = await service_token(service, gateway)

        answer = await introspect(service, token, gateway)

        assert answer == {"active": True, "token_type": "Bearer"} | claims_of(token)
        assert answer["scope"] == "tokens:introspect"

    async def test_a_token_for_a_resource_is_told_with_its_audience(
        self, service: Service, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        token = read_tokens(await renew(service, ana, resource=SHOP)).access_token

        assert (await introspect(service, token, gateway))["aud"] == SHOP

    async def test_a_refresh_token_is_active_until_its_successors_grace_is_over(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        fresh = await introspect(service, ana.refresh_token, gateway)
        renewed = read_tokens(await renew(service, ana))
        in_grace = await introspect(service, ana.refresh_token, gateway)
        await execute(database, update(SessionModel).values(last_used_at=utc_now() - timedelta(hours=1)))
        used = await introspect(service, ana.refresh_token, gateway)

        assert fresh.keys() == {"active", "iss", "sub", "client_id", "sid", "exp"}
        assert (fresh["active"], fresh["sub"], in_grace["active"], used) == (True, ana.user_id, True, {"active": False})
        assert (await introspect(service, renewed.refresh_token, gateway))["active"]  # looking was no replay

    async def test_what_has_ended_is_not_active_and_tells_nothing(
        self, service: Service, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        revoked = await service_token(service, await create_client(service, "users:read", name="revoked"))
        async with clients_of(service) as clients:
            await clients.revoke("revoked")
        await log_out(service, ana)

        for token in (ana.access_token, ana.refresh_token, revoked, "garbage"):
            assert await introspect(service, token, gateway) == {"active": False}

    async def test_tokens_of_who_is_disabled_are_not_active(self, service: Service, gateway: ClientSecret) -> None:
        disabled = await add_logged_in(service, "ben@example.com", is_active=False)

        for token in (disabled.access_token, disabled.refresh_token):
            assert await introspect(service, token, gateway) == {"active": False}

    async def test_a_bearer_token_or_http_basic_will_do(
        self, service: Service, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        admin = await create_admin(service)
        ways = [bearer(await service_token(service, gateway)), basic(gateway.client_id, gateway.client_secret)]

        for headers in (*ways, admin.bearer):
            response = await service.client.post("/auth/introspect", data={"token": ana.access_token}, headers=headers)

            assert response.json()["active"] is True

    async def test_who_may_not_is_told_so_and_whoever_has_no_credentials_too(
        self, service: Service, ana: LoggedIn
    ) -> None:
        reports = await create_client(service, "users:read")
        headers = [{}, basic("x", "y"), bearer("x"), ana.bearer, basic(reports.client_id, reports.client_secret)]

        refusals = [
            oauth_refusal(await service.client.post("/auth/introspect", data={"token": "x"}, headers=each))
            for each in headers
        ]

        assert refusals == [
            (401, "invalid_client", "INVALID_CLIENT"),
            (401, "invalid_client", "INVALID_CLIENT"),
            (401, "invalid_token", "INVALID_ACCESS_TOKEN"),
            (403, "insufficient_scope", "FORBIDDEN"),
            (403, "insufficient_scope", "INSUFFICIENT_SCOPE"),
        ]

    async def test_success_leaves_no_event_and_a_wrong_secret_does(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        before = await kinds_of_events(database)
        await introspect(service, ana.access_token, gateway)
        after = await kinds_of_events(database)

        await service.client.post("/auth/introspect", data={"token": "x"}, headers=basic(gateway.client_id, "wrong"))

        assert after == before
        assert await kinds_of_events(database) == [*before, EventKind.CLIENT_TOKEN]

    async def test_secrets_are_guessed_as_rarely_as_for_a_token(self, service: Service, gateway: ClientSecret) -> None:
        headers = basic(gateway.client_id, "wrong")

        statuses = [
            (await service.client.post("/auth/introspect", data={"token": "x"}, headers=headers)).status_code
            for _ in range(11)
        ]

        assert statuses == [401] * 10 + [429]


class TestResource:
    async def test_the_token_is_for_it_alone_and_we_refuse_it(self, service: Service) -> None:
        await create_account(service)
        tokens = read_tokens(await grant(service, **PASSWORD_GRANT, resource=SHOP))

        response = await me(service, tokens)

        assert claims_of(tokens.access_token)["aud"] == SHOP
        assert (response.status_code, response.json()["code"]) == (401, "INVALID_ACCESS_TOKEN")

    async def test_a_service_can_ask_for_it_and_we_refuse_its_token(self, service: Service) -> None:
        reports = await create_client(service, "users:read")
        token = (await post_client_credentials(service, reports, resource=SHOP)).json()["access_token"]

        response = await service.client.get("/api/users", headers=bearer(token))

        assert claims_of(token)["aud"] == SHOP
        assert response.status_code == 401

    async def test_a_refresh_token_is_bound_to_none(self, service: Service, ana: LoggedIn) -> None:
        for_shop = read_tokens(await renew(service, ana, resource=SHOP))

        for_us = read_tokens(await renew(service, for_shop, resource=""))

        assert (await me(service, for_us)).status_code == 200

    async def test_an_unknown_one_does_not_use_the_refresh_token(self, service: Service, ana: LoggedIn) -> None:
        response = await renew(service, ana, resource="https://else.where")

        assert oauth_refusal(response) == (400, "invalid_target", "INVALID_TARGET")
        assert (await introspect(service, ana.refresh_token, await create_client(service, "tokens:introspect")))[
            "active"
        ]


class TestAuthlib:
    async def test_takes_the_metadata_which_names_every_endpoint(self, service: Service) -> None:
        metadata = (await service.client.get("/.well-known/oauth-authorization-server")).json()

        AuthorizationServerMetadata(metadata).validate()
        routes = {metadata[f"{name}_endpoint"] for name in ("token", "revocation", "introspection")}
        assert routes == {f"http://localhost:8000{path}" for path in OAUTH_PATHS}

    async def test_takes_an_access_token_of_a_person_and_of_a_service(
        self, service: Service, ana: LoggedIn, gateway: ClientSecret
    ) -> None:
        jwks = (await service.client.get("/.well-known/jwks.json")).json()

        class Validator(JWTBearerTokenValidator):  # type: ignore[misc]  # authlib is not typed
            def get_jwks(self) -> Any:
                return KeySet.import_key_set(jwks)

        validator = Validator("http://localhost:8000", "user-auth-service")
        for token in (ana.access_token, await service_token(service, gateway)):
            validator.validate_token(validator.authenticate_token(token), None, None)


async def kinds_of_events(database: AsyncDatabaseManager) -> list[EventKind]:
    async with database.session() as session:
        return list(await session.scalars(select(AuditEventModel.kind).order_by(AuditEventModel.id)))


class TestRightSecrets:
    async def test_may_be_as_many_at_once_as_they_are(self, service: Service, gateway: ClientSecret) -> None:
        answers = await asyncio.gather(*(introspect(service, "x", gateway) for _ in range(20)))

        assert answers == [{"active": False}] * 20

    async def test_work_while_somebody_guesses(self, service: Service, gateway: ClientSecret) -> None:
        for _ in range(11):
            guess = await post_client_credentials(service, gateway, client_secret="wrong")

        assert guess.status_code == 429
        assert (await post_client_credentials(service, gateway)).status_code == 200


@pytest.mark.parametrize("path", sorted(OAUTH_PATHS))
async def test_forms_of_other_sites_are_refused(service: Service, path: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}

    response = await service.client.post(path, data={"token": "x"}, headers=headers)

    assert oauth_refusal(response) == (403, "invalid_request", "FOREIGN_ORIGIN")


async def test_below_the_prefix_of_a_proxy_refusals_have_the_same_words(service: Service) -> None:
    async with connect(service.app, root_path="/accounts") as client:
        response = await client.post("/accounts/auth/token", data={"grant_type": "password"})

    assert oauth_refusal(response) == (400, "invalid_request", "VALIDATION_ERROR")


@pytest.mark.slow
async def test_revocations_at_once_leave_one_event(
    service: Service, ana: LoggedIn, database: AsyncDatabaseManager
) -> None:
    await asyncio.gather(*(revoke(service, ana.refresh_token) for _ in range(8)))

    async with database.session() as session:
        query = select(AuditEventModel).where(AuditEventModel.kind == EventKind.LOG_OUT)
        assert len((await session.scalars(query)).all()) == 1
