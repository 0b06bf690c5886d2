"""Other services: how they get access tokens of their own, and what becomes of their secrets."""

from base64 import b64encode
from datetime import timedelta
from uuid import uuid4

import jwt
import pytest
from httpx import Response
from joserfc import jwk as joserfc_jwk
from joserfc import jwt as joserfc_jwt
from sqlalchemy import update

from src.core.exceptions import ClientNameTakenError, ClientNotFoundError, ClientRotatingError
from src.core.tokens import FIRST_PARTY_CLIENT_ID, hash_token
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import ServiceClientModel
from src.db.repositories import ServiceClientRepository, SessionRepository
from src.services.clients import ClientSecret
from tests.support.databases import dump
from tests.support.service import Service, clients_of
from tests.support.steps import (
    PASSWORD,
    bearer,
    create_account,
    create_client,
    me,
    post_client_credentials,
    read_tokens,
    refresh,
    refusal,
    service_token,
)

HOUR = timedelta(hours=1)


@pytest.fixture
async def reports(service: Service) -> ClientSecret:
    return await create_client(service, "users:read", "audit:read")


def basic(id_: object, secret: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{id_}:{secret}'.encode()).decode()}"}


def url_encode(text: object) -> str:
    """Every character, which RFC 6749 (appendix B) allows and no test value would need."""
    return "".join(f"%{byte:02X}" for byte in str(text).encode())


async def post_basic(service: Service, header: dict[str, str], **form: str) -> Response:
    return await service.client.post("/auth/token", data={"grant_type": "client_credentials"} | form, headers=header)


class TestCredentials:
    async def test_go_in_the_form_or_as_http_basic(self, service: Service, reports: ClientSecret) -> None:
        id_, secret = reports.client_id, reports.client_secret

        answers = {
            "form": await post_client_credentials(service, reports),
            "basic": await post_basic(service, basic(id_, secret)),
            "basic, URL-encoded": await post_basic(service, basic(url_encode(id_), url_encode(secret))),
            "basic, and the id in the form": await post_basic(service, basic(id_, secret), client_id=str(id_)),
            "with what is for people": await post_client_credentials(service, reports, username="junk"),
        }

        assert {way: answer.status_code for way, answer in answers.items()} == dict.fromkeys(answers, 200)

    async def test_that_are_sent_twice_are_a_400_and_those_that_are_missing_a_401(
        self, service: Service, reports: ClientSecret
    ) -> None:
        id_, secret = str(reports.client_id), reports.client_secret

        answers = {
            "twice": await post_basic(service, basic(id_, secret), client_id=id_, client_secret=secret),
            "nothing": await post_basic(service, {}),
            "the id alone": await post_basic(service, {}, client_id=id_),
            "the secret alone": await post_basic(service, {}, client_secret=secret),
        }

        assert {way: refusal(answer) for way, answer in answers.items()} == {
            "twice": (400, "VALIDATION_ERROR", ["client_secret"]),
            "nothing": (401, "INVALID_CLIENT", []),
            "the id alone": (401, "INVALID_CLIENT", []),
            "the secret alone": (401, "INVALID_CLIENT", []),
        }

    async def test_that_are_not_good_are_all_the_same_401(self, service: Service, reports: ClientSecret) -> None:
        id_, secret = reports.client_id, reports.client_secret
        revoked = await create_client(service, "users:read", name="revoked")
        async with clients_of(service) as clients:
            await clients.revoke("revoked")
        bad = {
            "wrong secret": (id_, "wrong"),
            "secret of another": (id_, revoked.client_secret),
            "hash of the secret": (id_, hash_token(secret)),
            "unknown id": (uuid4(), secret),
            "id that is none": ("reports", secret),
            "revoked": (revoked.client_id, revoked.client_secret),
        }

        answers = {f"{what}, basic": await post_basic(service, basic(*pair)) for what, pair in bad.items()}
        for what, (bad_id, bad_secret) in bad.items():
            answers[what] = await post_basic(service, {}, client_id=str(bad_id), client_secret=bad_secret)
        answers["another id in the form, basic"] = await post_basic(service, basic(id_, secret), client_id="another")
        answers["no secret, basic"] = await post_basic(service, basic(id_, ""))
        answers["no colon, basic"] = await post_basic(service, {"Authorization": f"Basic {b64encode(b'x').decode()}"})
        answers["no base64, basic"] = await post_basic(service, {"Authorization": "Basic !"})

        first = answers["wrong secret"].json()
        assert first["code"] == "INVALID_CLIENT"
        assert {
            what: (answer.status_code, answer.headers.get("www-authenticate"), answer.json())
            for what, answer in answers.items()
        } == dict.fromkeys(answers, (401, 'Basic realm="clients"', first))


class TestScopes:
    async def test_are_those_that_were_asked_for_or_else_all(self, service: Service, reports: ClientSecret) -> None:
        asked = {"": "audit:read users:read", " ": "audit:read users:read", "users:read": "users:read"}
        asked |= {"users:read audit:read users:read": "audit:read users:read"}

        answers = {scope: await post_client_credentials(service, reports, scope=scope) for scope in asked}

        assert {scope: answer.json()["scope"] for scope, answer in answers.items()} == asked
        for answer in answers.values():
            claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
            assert claims["scope"] == answer.json()["scope"]

    async def test_that_the_client_was_not_given_are_a_400_and_not_left_out(
        self, service: Service, reports: ClientSecret
    ) -> None:
        for scope in ("users:write", "users:read users:write", "admin", "USERS:READ", "users:read,audit:read"):
            response = await post_client_credentials(service, reports, scope=scope)

            assert refusal(response) == (400, "INVALID_SCOPE", [])

    async def test_that_were_not_asked_for_are_not_in_effect(self, service: Service, reports: ClientSecret) -> None:
        answer = (await post_client_credentials(service, reports, scope="audit:read")).json()

        response = await service.client.get("/api/users", headers=bearer(answer["access_token"]))

        assert refusal(response) == (403, "INSUFFICIENT_SCOPE", [])


class TestToken:
    async def test_the_answer_is_that_of_rfc_6749_without_a_refresh_token(
        self, service: Service, reports: ClientSecret
    ) -> None:
        response = await post_client_credentials(service, reports)

        body = response.json()
        assert body.keys() == {"access_token", "token_type", "expires_in", "scope"}
        assert (body["token_type"], body["expires_in"], body["scope"]) == ("bearer", 900, "audit:read users:read")
        assert response.headers["cache-control"] == "no-store"

    async def test_another_library_verifies_it_from_the_jwks_alone(
        self, service: Service, reports: ClientSecret
    ) -> None:
        encoded = await service_token(service, reports)

        keys = joserfc_jwk.KeySet.import_key_set((await service.client.get("/.well-known/jwks.json")).json())
        token = joserfc_jwt.decode(encoded, keys, algorithms=["ES256"])

        claims, client_id = token.claims, str(reports.client_id)
        assert token.header["typ"] == "at+jwt"
        assert claims.keys() == {"iss", "aud", "sub", "client_id", "scope", "iat", "exp", "jti"}
        assert (claims["iss"], claims["aud"]) == ("http://localhost:8000", "user-auth-service")
        assert (claims["sub"], claims["client_id"], claims["scope"]) == (client_id, client_id, "audit:read users:read")
        assert claims["exp"] - claims["iat"] == 900

    async def test_it_has_no_session_and_cannot_be_refreshed(
        self, service: Service, database: AsyncDatabaseManager, reports: ClientSecret
    ) -> None:
        response = await refresh(service, await service_token(service, reports))

        assert refusal(response) == (401, "INVALID_REFRESH_TOKEN", [])
        async with database.session() as session:
            assert await SessionRepository(session).count() == 0

    async def test_it_ends_at_once_when_its_client_is_revoked(self, service: Service, reports: ClientSecret) -> None:
        headers = bearer(await service_token(service, reports))
        before = await service.client.get("/api/users", headers=headers)

        async with clients_of(service) as clients:
            await clients.revoke("reports")
        after = await service.client.get("/api/users", headers=headers)

        assert before.status_code == 200
        assert refusal(after) == (401, "INVALID_ACCESS_TOKEN", [])


class TestSecret:
    async def test_is_nowhere_in_the_database_and_neither_is_a_token(
        self, service: Service, database: AsyncDatabaseManager, reports: ClientSecret
    ) -> None:
        tokens = [await service_token(service, reports)]
        async with clients_of(service) as clients:
            rotated = await clients.rotate("reports", overlap=HOUR)
        tokens.append(await service_token(service, rotated))
        await post_client_credentials(service, ClientSecret(reports.client_id, "a-wrong-secret"))
        await post_client_credentials(service, reports, scope="users:write")

        rows = await dump(database)

        for secret in (reports.client_secret, rotated.client_secret, "a-wrong-secret", *tokens):
            assert secret not in rows
        assert hash_token(reports.client_secret) in rows  # the search does find what is stored
        assert rows.count("client_token") == 4

    async def test_of_the_rotation_before_works_until_the_overlap_ends(
        self, service: Service, database: AsyncDatabaseManager, reports: ClientSecret
    ) -> None:
        async with clients_of(service) as clients:
            rotated = await clients.rotate("reports", overlap=HOUR)
        assert await statuses(service, reports, rotated) == [200, 200]

        async with database.session() as session:
            await session.execute(update(ServiceClientModel).values(previous_expires_at=utc_now()))
            await session.commit()

        assert await statuses(service, reports, rotated) == [401, 200]

    async def test_ends_at_once_when_there_is_no_overlap(self, service: Service, reports: ClientSecret) -> None:
        async with clients_of(service) as clients:
            rotated = await clients.rotate("reports", overlap=timedelta(0))

        assert await statuses(service, reports, rotated) == [401, 200]

    async def test_is_not_rotated_again_while_two_work_unless_both_are_to_end(
        self, service: Service, reports: ClientSecret
    ) -> None:
        async with clients_of(service) as clients:
            second = await clients.rotate("reports", overlap=HOUR)
            with pytest.raises(ClientRotatingError):
                await clients.rotate("reports", overlap=HOUR)
        before = await statuses(service, reports, second)
        async with clients_of(service) as clients:
            third = await clients.rotate("reports", overlap=timedelta(0))

        assert before == [200, 200]
        assert await statuses(service, reports, second, third) == [401, 401, 200]

    async def test_is_of_one_client_alone_and_so_is_its_rotation(self, service: Service, reports: ClientSecret) -> None:
        billing = await create_client(service, "users:read", name="billing")

        async with clients_of(service) as clients:
            rotated = await clients.rotate("reports", overlap=timedelta(0))

        assert await statuses(service, billing, rotated) == [200, 200]
        assert len({billing.client_id, reports.client_id}) == 2
        assert rotated.client_id == reports.client_id


class TestName:
    async def test_is_of_one_live_client_and_free_after_its_revocation(
        self, service: Service, reports: ClientSecret
    ) -> None:
        with pytest.raises(ClientNameTakenError):
            await create_client(service, "users:read")

        async with clients_of(service) as clients:
            await clients.revoke("reports")
        successor = await create_client(service, "users:read")

        assert successor.client_id != reports.client_id
        assert await statuses(service, reports, successor) == [401, 200]

    @pytest.mark.usefixtures("reports")
    async def test_of_a_revoked_or_unknown_client_is_not_found(self, service: Service) -> None:
        async with clients_of(service) as clients:
            await clients.revoke("reports")

            for name in ("reports", "unknown"):
                with pytest.raises(ClientNotFoundError):
                    await clients.revoke(name)
                with pytest.raises(ClientNotFoundError):
                    await clients.rotate(name, overlap=HOUR)


async def test_the_last_use_is_noted_and_a_refusal_is_none(
    service: Service, database: AsyncDatabaseManager, reports: ClientSecret
) -> None:
    await post_client_credentials(service, ClientSecret(reports.client_id, "wrong"))
    await post_client_credentials(service, reports, scope="users:write")
    assert (await only_client(database)).last_used_at is None

    await service_token(service, reports)
    first = (await only_client(database)).last_used_at
    await service_token(service, reports)
    second = (await only_client(database)).last_used_at

    assert first is not None
    assert second is not None
    assert first < second


class TestPasswordGrant:
    async def test_goes_on_next_to_the_other_one(self, service: Service, reports: ClientSecret) -> None:
        user_id = await create_account(service)
        form = {"grant_type": "password", "username": "ana@example.com", "password": PASSWORD}
        client = {"client_id": str(reports.client_id), "client_secret": reports.client_secret}

        tokens = read_tokens(await service.client.post("/auth/token", data=form | client))

        assert (await me(service, tokens)).json()["id"] == user_id
        claims = jwt.decode(tokens.access_token, options={"verify_signature": False})
        assert "scope" not in claims
        assert claims["client_id"] == FIRST_PARTY_CLIENT_ID

    async def test_without_a_username_or_a_password_is_a_400_that_names_it(self, service: Service) -> None:
        form = {"grant_type": "password", "username": "ana@example.com", "password": PASSWORD}

        for missing in ("username", "password"):
            rest = {name: value for name, value in form.items() if name != missing}
            response = await service.client.post("/auth/token", data=rest)

            assert refusal(response) == (400, "VALIDATION_ERROR", [missing])


async def statuses(service: Service, *clients: ClientSecret) -> list[int]:
    return [(await post_client_credentials(service, client)).status_code for client in clients]


async def only_client(database: AsyncDatabaseManager) -> ServiceClientModel:
    async with database.session() as session:
        [client] = await ServiceClientRepository(session).list()
        return client
