"""One user: what is shown of them and to whom, and what they and others may change."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from httpx import Response
from sqlalchemy import select

from src.db import AsyncDatabaseManager
from src.db.models import UserModel
from tests.support.factories import add_users
from tests.support.service import Service, StartService
from tests.support.steps import (
    UNKNOWN_ID,
    LoggedIn,
    bearer,
    create_account,
    create_admin,
    create_client,
    log_in,
    me,
    refusal,
    service_token,
    sign_up,
)


async def read(service: Service, user_id: str, who: LoggedIn | None = None) -> Response:
    return await service.client.get(f"/api/users/{user_id}", headers=who.bearer if who else {})


async def patch(
    service: Service, who: LoggedIn, user_id: str, body: dict[str, Any], if_match: str | None = None
) -> Response:
    headers = who.bearer | ({} if if_match is None else {"If-Match": if_match})
    return await service.client.patch(f"/api/users/{user_id}", json=body, headers=headers)


async def stored(database: AsyncDatabaseManager, user_id: str) -> Any:
    """The whole row."""
    async with database.session() as session:
        return (await session.execute(select(UserModel.__table__).where(UserModel.id == UUID(user_id)))).one()


@pytest.fixture
async def ana(service: Service) -> LoggedIn:
    await create_account(service, name="Ana")
    return await log_in(service)


@pytest.fixture
async def admin(service: Service) -> LoggedIn:
    return await create_admin(service)


async def test_anyone_may_read_the_public_profile_and_no_more(service: Service) -> None:
    user_id = (await sign_up(service, name="Ana"))["user_id"]

    response = await service.client.get(f"/api/users/{user_id}")

    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"id", "name", "is_active", "created_at"}
    assert (body["id"], body["name"], body["is_active"]) == (user_id, "Ana", False)
    assert body["created_at"].endswith("Z")


async def test_an_unknown_user_is_a_404_in_the_envelope(service: Service) -> None:
    response = await service.client.get(f"/api/users/{uuid4()}")

    assert response.status_code == 404
    assert response.json() == {"detail": "There is no such user.", "code": "USER_NOT_FOUND", "details": {}}


@pytest.mark.parametrize("user_id", ["1", "not-a-uuid", "%00", "00000000-0000-0000-0000-00000000000g"])
async def test_a_malformed_id_is_a_422_that_does_not_repeat_it(service: Service, user_id: str) -> None:
    response = await service.client.get(f"/api/users/{user_id}")

    assert response.status_code == 422
    assert response.json()["details"] == {"fields": [{"field": "path.user_id", "reason": "is not a UUID"}]}


async def test_hidden_profiles_look_to_strangers_like_nobodys(start_service: StartService) -> None:
    service = await start_service(users_public_profiles=False)
    user_id = await create_account(service)
    ana, admin = await log_in(service), await create_admin(service)
    await create_account(service, "bob@example.com")
    bob = await log_in(service, "bob@example.com")
    reader, writer = [
        bearer(await service_token(service, await create_client(service, scope, name=scope)))
        for scope in ("users:read", "users:write")
    ]

    hidden = [
        await service.client.get(f"/api/users/{id_}", headers=headers)
        for id_ in (user_id, UNKNOWN_ID)
        for headers in ({}, bob.bearer, writer)
    ]
    shown = [
        await service.client.get(f"/api/users/{user_id}", headers=headers)
        for headers in (ana.bearer, admin.bearer, reader)
    ]

    assert [(each.status_code, each.json(), each.headers.get("etag")) for each in hidden] == [
        (404, {"detail": "There is no such user.", "code": "USER_NOT_FOUND", "details": {}}, None)
    ] * 6
    assert [(each.status_code, each.json().get("email")) for each in shown] == [(200, "ana@example.com")] * 3


async def test_no_answer_about_a_user_holds_a_hash_or_a_token(
    service: Service, database: AsyncDatabaseManager, ana: LoggedIn, admin: LoggedIn
) -> None:
    secrets = [(await stored(database, who.user_id)).hashed_password for who in (ana, admin)]
    secrets += [token for who in (ana, admin) for token in (who.access_token, who.refresh_token)]

    answers = [
        await read(service, ana.user_id),
        await read(service, ana.user_id, ana),
        await read(service, ana.user_id, admin),
        await me(service, ana),
        await service.client.get("/api/users?count=true", headers=admin.bearer),
        await service.client.get(f"/api/users/{ana.user_id}/sessions", headers=admin.bearer),
        await patch(service, admin, ana.user_id, {"name": "Bo", "is_admin": True}),
    ]

    assert [answer.status_code for answer in answers] == [200] * 7
    text = "".join(answer.text for answer in answers)
    assert [secret for secret in secrets if secret in text] == []
    assert "password" not in text


class TestChanging:
    async def test_the_owner_changes_and_clears_their_name(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn
    ) -> None:
        before = (await read(service, ana.user_id, ana)).json()

        renamed = await patch(service, ana, ana.user_id, {"name": "  Ana María "})

        record = renamed.json()
        assert renamed.status_code == 200
        assert record == before | {"name": "Ana María", "updated_at": record["updated_at"]}
        assert record["updated_at"] > before["updated_at"]
        assert record == (await read(service, ana.user_id, ana)).json()
        assert (await patch(service, ana, ana.user_id, {"name": None})).json()["name"] is None
        assert (await stored(database, ana.user_id)).name is None

    async def test_an_administrator_changes_all_that_can_be_changed(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn, admin: LoggedIn
    ) -> None:
        changes = {"name": "Bo", "is_active": False, "is_admin": True}

        response = await patch(service, admin, ana.user_id, changes)

        assert response.status_code == 200
        assert response.json().items() >= changes.items()
        row = await stored(database, ana.user_id)
        assert (row.name, row.is_active, row.is_admin) == ("Bo", False, True)

    async def test_no_change_is_none(self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn) -> None:
        before = await stored(database, ana.user_id)

        response = await patch(service, ana, ana.user_id, {})

        assert (response.status_code, response.json()["name"]) == (200, "Ana")
        assert await stored(database, ana.user_id) == before

    async def test_what_nobody_may_change_is_a_422_that_names_it_and_changes_nothing(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn, admin: LoggedIn
    ) -> None:
        before = await stored(database, ana.user_id)
        wrong = {
            "id": UNKNOWN_ID,
            "email": "other@example.com",
            "hashed_password": "<planted>",
            "password": "another-pass-12-chars",
            "created_at": "2001-01-01T00:00:00Z",
            "activated_at": None,
            "last_login_at": None,
            "nickname": "An",
            "is_active": None,
            "is_admin": "perhaps",
        }

        refusals = {
            (who.user_id, field): refusal(await patch(service, who, ana.user_id, {"name": "Bo", field: value}))
            for who in (ana, admin)
            for field, value in wrong.items()
        }

        assert refusals == {(id_, field): (422, "VALIDATION_ERROR", [field]) for id_, field in refusals}
        assert await stored(database, ana.user_id) == before

    async def test_a_name_is_refused_as_at_sign_up(self, service: Service, ana: LoggedIn, admin: LoggedIn) -> None:
        for name in ("An\u202ea", "An\u2028a", "see https://evil.example.com"):
            body = {"email": "bob@example.com", "name": name}
            invited = await service.client.post("/api/users", json=body, headers=admin.bearer)

            assert refusal(invited) == (422, "VALIDATION_ERROR", ["name"])
            assert refusal(await patch(service, ana, ana.user_id, {"name": name})) == (
                422,
                "VALIDATION_ERROR",
                ["name"],
            )

    async def test_what_the_owner_may_not_change_is_a_403_that_names_it_and_changes_nothing(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn
    ) -> None:
        before = await stored(database, ana.user_id)
        bodies: list[dict[str, Any]] = [
            {"is_admin": True},
            {"is_admin": False},
            {"name": "Bo", "is_active": False},
            {"name": "Bo", "is_admin": True, "is_active": True},
        ]

        refusals = [refusal(await patch(service, ana, ana.user_id, body)) for body in bodies]

        named = [["is_admin"], ["is_admin"], ["is_active"], ["is_active", "is_admin"]]
        assert refusals == [(403, "FIELDS_FORBIDDEN", fields) for fields in named]
        assert await stored(database, ana.user_id) == before

    async def test_nobody_elses_can_be_changed_whether_they_exist_or_not(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn
    ) -> None:
        [bob] = await add_users(database, {"email": "bob@example.com", "name": "Bob"})
        before = await stored(database, bob)

        refusals = [refusal(await patch(service, ana, id_, {"name": "Bo"})) for id_ in (bob, UNKNOWN_ID)]

        assert refusals == [(403, "FORBIDDEN", [])] * 2
        assert await stored(database, bob) == before

    async def test_to_an_administrator_an_unknown_user_is_a_404(self, service: Service, admin: LoggedIn) -> None:
        assert refusal(await patch(service, admin, UNKNOWN_ID, {"name": "Bo"})) == (404, "USER_NOT_FOUND", [])

    async def test_a_sign_up_that_waits_cannot_be_changed(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        waiting = (await sign_up(service, "waiting@example.com"))["user_id"]
        before = await stored(database, waiting)

        response = await patch(service, admin, waiting, {"is_active": True})

        assert refusal(response) == (409, "USER_PENDING", [])
        assert await stored(database, waiting) == before

    async def test_a_promotion_holds_on_the_next_call_and_so_does_a_demotion(
        self, service: Service, ana: LoggedIn, admin: LoggedIn
    ) -> None:
        statuses = []
        for is_admin in (False, True, False):
            await patch(service, admin, ana.user_id, {"is_admin": is_admin})
            statuses.append((await service.client.get("/api/users", headers=ana.bearer)).status_code)

        assert statuses == [403, 200, 403]


class TestVersions:
    async def test_every_answer_with_a_whole_record_has_its_version(
        self, service: Service, ana: LoggedIn, admin: LoggedIn
    ) -> None:
        tags = [
            (await read(service, ana.user_id, ana)).headers["etag"],
            (await read(service, ana.user_id, admin)).headers["etag"],
            (await me(service, ana)).headers["etag"],
        ]
        changed = (await patch(service, ana, ana.user_id, {"name": "Bo"})).headers["etag"]

        assert len(set(tags)) == 1
        assert changed != tags[0]
        assert changed == (await me(service, ana)).headers["etag"]

    async def test_a_change_of_another_version_is_a_412_and_changes_nothing(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn
    ) -> None:
        tag = (await me(service, ana)).headers["etag"]
        before = await stored(database, ana.user_id)
        bare = tag.strip('"')
        stale = ('"0123"', '"a", "b"', f"W/{tag}", bare, f'"{bare}', f'"{tag}"', "garbage", '"', "")

        responses = {each: await patch(service, ana, ana.user_id, {"name": "Bo"}, if_match=each) for each in stale}

        refusals = {each: refusal(response) for each, response in responses.items()}

        assert refusals == dict.fromkeys(stale, (412, "PRECONDITION_FAILED", []))
        assert await stored(database, ana.user_id) == before

    async def test_a_change_of_this_version_or_of_any_holds(self, service: Service, ana: LoggedIn) -> None:
        names = []
        for number, form in enumerate(("{}", '"0123", {}', "{} ,W/{}", "*")):
            tags = form.replace("{}", (await me(service, ana)).headers["etag"])
            response = await patch(service, ana, ana.user_id, {"name": f"Ana {number}"}, if_match=tags)
            names.append((response.status_code, response.json().get("name")))

        assert names == [(200, f"Ana {number}") for number in range(4)]

    async def test_of_changes_of_one_version_at_once_one_holds(
        self, service: Service, database: AsyncDatabaseManager, ana: LoggedIn
    ) -> None:
        tag = (await me(service, ana)).headers["etag"]

        responses = await asyncio.gather(
            *(patch(service, ana, ana.user_id, {"name": f"Ana {number}"}, if_match=tag) for number in range(4))
        )

        assert sorted(response.status_code for response in responses) == [200, 412, 412, 412]
        [name] = [response.json()["name"] for response in responses if response.status_code == 200]
        assert (await stored(database, ana.user_id)).name == name

    async def test_a_log_in_even_one_that_upgrades_the_hash_changes_no_version(
        self, service: Service, start_service: StartService, database: AsyncDatabaseManager, ana: LoggedIn
    ) -> None:
        service_of_higher_cost = await start_service(auth_bcrypt_rounds=5)
        answer, before = await me(service, ana), await stored(database, ana.user_id)

        await log_in(service_of_higher_cost)

        after = await stored(database, ana.user_id)
        assert after.hashed_password != before.hashed_password
        assert after.last_login_at > before.last_login_at
        assert after.updated_at == before.updated_at
        response = await patch(service, ana, ana.user_id, {"name": "Bo"}, if_match=answer.headers["etag"])
        assert response.status_code == 200

    async def test_that_of_a_public_profile_tells_nothing_of_what_strangers_do_not_see(
        self, service: Service, ana: LoggedIn, admin: LoggedIn
    ) -> None:
        before = (await read(service, ana.user_id)).headers["etag"]
        whole = (await me(service, ana)).headers["etag"]

        await patch(service, admin, ana.user_id, {"is_admin": True})

        assert (await read(service, ana.user_id)).headers["etag"] == before
        assert (await me(service, ana)).headers["etag"] != whole

        await patch(service, ana, ana.user_id, {"name": "Bo"})

        assert (await read(service, ana.user_id)).headers["etag"] != before
