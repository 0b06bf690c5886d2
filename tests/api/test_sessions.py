"""Sessions: log in, refresh, list, revoke, log out."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import uuid4

import bcrypt
import pytest
from sqlalchemy import text, update

from src.core.passwords import hash_password, verify_password
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import SessionModel, UserModel
from src.db.repositories import SessionRepository, UserRepository
from tests.support.factories import add_users
from tests.support.hashing import count_hashes, hold, start_waiting
from tests.support.service import Service, StartService
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    LoggedIn,
    create_account,
    log_in,
    me,
    post_log_in,
    read_tokens,
    refresh,
    sign_up,
)

COMPOSED, DECOMPOSED = "senha-\u00e9-de-verdade", "senha-e\u0301-de-verdade"


async def change(database: AsyncDatabaseManager, model: type[UserModel] | type[SessionModel], **values: object) -> None:
    """Change every row of a table behind the application's back."""
    async with database.session() as session:
        await session.execute(update(model).values(**values))
        await session.commit()


async def only_user(database: AsyncDatabaseManager) -> UserModel:
    async with database.session() as session:
        [user] = await UserRepository(session).list()
    return user


async def only_session(database: AsyncDatabaseManager) -> SessionModel:
    async with database.session() as session:
        [row] = await SessionRepository(session).list()
    return row


def generation(service: Service, refresh_token: str) -> int:
    signer = service.signer
    return signer.read_refresh(refresh_token).generation


class TestLogIn:
    async def test_it_answers_with_a_pair_of_tokens(self, service: Service) -> None:
        user_id = await create_account(service)

        response = await post_log_in(service)

        assert response.status_code == 200
        body = response.json()
        assert body.keys() == {
            "access_token",
            "token_type",
            "expires_in",
            "refresh_token",
            "refresh_expires_in",
            "user_id",
        }
        assert (body["token_type"], body["expires_in"], body["user_id"]) == ("bearer", 900, user_id)
        assert 0 <= 14 * 24 * 3600 - body["refresh_expires_in"] <= 5
        assert response.headers["cache-control"] == "no-store"

    async def test_the_address_may_be_written_in_any_spelling(self, service: Service) -> None:
        await create_account(service)

        assert (await post_log_in(service, "ANA@Example.com")).status_code == 200

    async def test_the_authorize_button_of_the_documentation_works(self, service: Service) -> None:
        await create_account(service)
        form = {
            "grant_type": "password",
            "username": "ana@example.com",
            "password": PASSWORD,
            "scope": "",
            "extra": "x",
        }

        response = await service.client.post("/auth/token", data=form)

        assert (await me(service, read_tokens(response))).status_code == 200
        flow = service.app.openapi()["components"]["securitySchemes"]["OAuth2"]["flows"]["password"]
        assert flow["tokenUrl"] == "/auth/token"

    async def test_the_time_of_the_last_log_in_is_kept(self, service: Service, database: AsyncDatabaseManager) -> None:
        await create_account(service)
        assert (await only_user(database)).last_login_at is None
        before = utc_now()

        await log_in(service)

        last_login_at = (await only_user(database)).last_login_at
        assert last_login_at is not None
        assert before <= last_login_at <= utc_now()

    async def test_wrong_unknown_pending_and_disabled_look_the_same_and_cost_the_same(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        await create_account(service)
        wrong = await post_log_in(service, password="not-the-password")
        await change(database, UserModel, is_active=False)
        await sign_up(service, "pending@example.com")
        pool = count_hashes(service)

        emails = ("ana@example.com", "pending@example.com", "ghost@example.com")
        refusals = [wrong, *[await post_log_in(service, email) for email in emails]]

        assert pool.count == 3
        assert {refusal.status_code for refusal in refusals} == {401}
        assert len({refusal.text for refusal in refusals}) == 1
        assert len({tuple(refusal.headers) for refusal in refusals}) == 1
        assert wrong.json()["code"] == "INVALID_CREDENTIALS"
        assert "not confirmed" in wrong.json()["detail"]
        assert wrong.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize(("chosen", "typed"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
    async def test_it_does_not_matter_how_a_keyboard_composes_the_password(
        self, service: Service, chosen: str, typed: str
    ) -> None:
        await create_account(service, password=chosen)

        assert (await post_log_in(service, password=typed)).status_code == 200

    async def test_a_foreign_hash_of_a_decomposed_password_is_upgraded(
        self, start_service: StartService, database: AsyncDatabaseManager
    ) -> None:
        service = await start_service(auth_bcrypt_rounds=5)
        foreign = bcrypt.hashpw(DECOMPOSED.encode(), bcrypt.gensalt(4)).decode()
        await add_users(database, {"email": "ana@example.com", "hashed_password": foreign})

        response = await post_log_in(service, password=COMPOSED)

        assert response.status_code == 200
        upgraded = (await only_user(database)).hashed_password
        assert upgraded.startswith("$bcrypt-sha256$v=2,t=2b,r=5$")
        assert verify_password(COMPOSED, upgraded, rounds=5)

    @pytest.mark.parametrize(
        "stored",
        [
            bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode(),
            bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$"),
            hash_password(PASSWORD, 4),
        ],
        ids=["2b", "2y", "cheaper"],
    )
    async def test_a_foreign_or_cheaper_hash_is_upgraded(
        self, start_service: StartService, database: AsyncDatabaseManager, stored: str
    ) -> None:
        service = await start_service(auth_bcrypt_rounds=5)
        await create_account(service)
        await change(database, UserModel, hashed_password=stored)

        await post_log_in(service, password="not-the-password")
        assert (await only_user(database)).hashed_password == stored
        await log_in(service)

        upgraded = (await only_user(database)).hashed_password
        assert upgraded.startswith("$bcrypt-sha256$v=2,t=2b,r=5$")
        assert verify_password(PASSWORD, upgraded, rounds=5)
        await log_in(service)

    async def test_a_hash_of_this_cost_is_left_alone(self, service: Service, database: AsyncDatabaseManager) -> None:
        await create_account(service)
        before = (await only_user(database)).hashed_password

        await log_in(service)

        assert (await only_user(database)).hashed_password == before

    async def test_the_oldest_of_too_many_sessions_ends(self, start_service: StartService) -> None:
        service = await start_service(auth_max_sessions_per_user=2)
        await create_account(service)

        logged_in = [await log_in(service) for _ in range(3)]

        assert [(await me(service, each)).status_code for each in logged_in] == [401, 200, 200]

    @pytest.mark.slow
    async def test_many_log_ins_at_once_all_work(self, service: Service) -> None:
        await create_account(service)

        responses = await asyncio.gather(*(post_log_in(service) for _ in range(10)))

        assert {response.status_code for response in responses} == {200}


Action = Callable[[Service, LoggedIn, AsyncDatabaseManager], Awaitable[None]]


async def reset(service: Service, _who: LoggedIn, _database: AsyncDatabaseManager) -> None:
    answer = await service.client.post("/auth/password-reset/request", json={"email": "ana@example.com"})
    token = answer.json()["reset_url"].partition("token=")[2]
    response = await service.client.post(
        "/auth/password-reset/confirm", json={"token": token, "new_password": NEW_PASSWORD}
    )
    assert response.status_code == 204, response.text


async def change_password(service: Service, who: LoggedIn, _database: AsyncDatabaseManager) -> None:
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    response = await service.client.post("/auth/password-change", json=body, headers=who.bearer)
    assert response.status_code == 204, response.text


async def disable(_service: Service, _who: LoggedIn, database: AsyncDatabaseManager) -> None:
    await change(database, UserModel, is_active=False)


async def delete(service: Service, who: LoggedIn, _database: AsyncDatabaseManager) -> None:
    body = {"current_password": PASSWORD}
    response = await service.client.post("/auth/delete-account", json=body, headers=who.bearer)
    assert response.status_code == 204, response.text


@pytest.mark.slow
@pytest.mark.parametrize("action", [reset, change_password, disable, delete])
@pytest.mark.parametrize("rounds", [4, 5])
async def test_a_log_in_that_is_hashing_meanwhile_is_refused_and_leaves_the_new_hash_alone(
    start_service: StartService, database: AsyncDatabaseManager, action: Action, rounds: int
) -> None:
    other = await start_service(auth_return_token_in_response=True)
    await create_account(other)
    who = await log_in(other)
    service = await start_service(auth_bcrypt_rounds=rounds)  # with more rounds, the log-in also upgrades the hash
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    pool = count_hashes(service)
    holding = await hold(pool, gate, jobs=2)
    logging_in = await start_waiting(pool, post_log_in(service))

    await action(other, who, database)
    gate.set_result(None)
    response = await logging_in
    await asyncio.gather(*holding)

    assert response.status_code == 401
    assert response.json()["code"] == "INVALID_CREDENTIALS"
    async with database.session() as session:
        users, sessions = await UserRepository(session).list(), await SessionRepository(session).count()
    if action in (reset, change_password):
        assert verify_password(NEW_PASSWORD, users[0].hashed_password, rounds=4)
    assert sessions == (0 if action is delete else 1)


@pytest.mark.parametrize("action", [reset, change_password, delete])
@pytest.mark.slow
async def test_acts_of_one_person_at_once_end_in_one_password_and_no_error(
    start_service: StartService, database: AsyncDatabaseManager, action: Action
) -> None:
    service = await start_service(auth_return_token_in_response=True)
    await create_account(service)
    who = await log_in(service)

    responses = await asyncio.gather(
        action(service, who, database),
        *(post_log_in(service) for _ in range(5)),
        *(refresh(service, who.refresh_token) for _ in range(5)),
    )

    assert {response.status_code for response in responses if response is not None} <= {200, 401}


class TestRefresh:
    async def test_each_refresh_gives_the_next_pair(self, service: Service, database: AsyncDatabaseManager) -> None:
        await create_account(service)
        first = await log_in(service)

        second = read_tokens(await refresh(service, first.refresh_token))
        third = read_tokens(await refresh(service, second.refresh_token))

        assert [generation(service, each.refresh_token) for each in (first, second, third)] == [1, 2, 3]
        assert (await me(service, third)).status_code == 200
        assert (await only_session(database)).generation == 3

    async def test_a_token_sent_again_within_the_grace_gets_the_same_successor(self, service: Service) -> None:
        await create_account(service)
        first = await log_in(service)
        second = read_tokens(await refresh(service, first.refresh_token))

        again = read_tokens(await refresh(service, first.refresh_token))

        assert again.refresh_token == second.refresh_token
        assert (await refresh(service, again.refresh_token)).status_code == 200

    async def test_replaying_a_refresh_token_ends_the_session(
        self, service: Service, database: AsyncDatabaseManager, caplog: pytest.LogCaptureFixture
    ) -> None:
        await create_account(service)
        first = await log_in(service)
        second = read_tokens(await refresh(service, first.refresh_token))
        await change(database, SessionModel, last_used_at=utc_now() - timedelta(seconds=11))

        replay = await refresh(service, first.refresh_token)

        assert replay.status_code == 401
        assert replay.json()["code"] == "INVALID_REFRESH_TOKEN"
        assert (await only_session(database)).revoked_at is not None
        assert "replayed" in caplog.text
        assert (await refresh(service, second.refresh_token)).status_code == 401
        assert (await me(service, second)).status_code == 401

    async def test_an_older_generation_is_a_replay_within_the_grace_too(self, service: Service) -> None:
        await create_account(service)
        first = await log_in(service)
        second = read_tokens(await refresh(service, first.refresh_token))
        third = read_tokens(await refresh(service, second.refresh_token))

        assert (await refresh(service, first.refresh_token)).status_code == 401
        assert (await refresh(service, third.refresh_token)).status_code == 401

    @pytest.mark.slow
    async def test_eight_tabs_refresh_at_once_and_stay_in_one_lineage(self, service: Service) -> None:
        await create_account(service)
        token = (await log_in(service)).refresh_token

        for number in range(20):
            responses = await asyncio.gather(*(refresh(service, token) for _ in range(8)))

            assert {response.status_code for response in responses} == {200}
            [token] = {response.json()["refresh_token"] for response in responses}
            assert generation(service, token) == number + 2

    async def test_without_grace_the_losers_of_a_race_end_the_session(
        self, start_service: StartService, database: AsyncDatabaseManager
    ) -> None:
        service = await start_service(auth_refresh_grace_seconds=0)
        await create_account(service)
        first = await log_in(service)

        responses = await asyncio.gather(*(refresh(service, first.refresh_token) for _ in range(8)))

        assert sorted(response.status_code for response in responses) == [200] + [401] * 7
        assert (await only_session(database)).revoked_at is not None

    @pytest.mark.parametrize("limit", ["idle_expires_at", "expires_at"])
    async def test_a_session_ends_at_its_limits(
        self, service: Service, database: AsyncDatabaseManager, limit: str
    ) -> None:
        await create_account(service)
        who = await log_in(service)
        await change(database, SessionModel, **{limit: utc_now()})

        assert (await refresh(service, who.refresh_token)).status_code == 401
        assert (await me(service, who)).status_code == 401
        assert (await only_session(database)).revoked_at is None

    async def test_a_refresh_moves_the_idle_limit_and_not_the_absolute_one(
        self, start_service: StartService, database: AsyncDatabaseManager
    ) -> None:
        service = await start_service(auth_session_idle_seconds=60, auth_session_absolute_seconds=90)
        await create_account(service)
        who = await log_in(service)
        started = await only_session(database)
        await change(database, SessionModel, idle_expires_at=utc_now() + timedelta(seconds=5))

        response = await refresh(service, who.refresh_token)

        assert 55 <= response.json()["refresh_expires_in"] <= 60
        assert (await only_session(database)).expires_at == started.expires_at
        await change(database, SessionModel, expires_at=utc_now() + timedelta(seconds=30))
        response = await refresh(service, response.json()["refresh_token"])
        assert 25 <= response.json()["refresh_expires_in"] <= 30

    async def test_a_disabled_user_cannot_refresh(self, service: Service, database: AsyncDatabaseManager) -> None:
        await create_account(service)
        who = await log_in(service)
        await change(database, UserModel, is_active=False)

        assert (await refresh(service, who.refresh_token)).status_code == 401

    @pytest.mark.parametrize("token", ["x", "a.b.c", "ünïcode", "." * 4096])
    async def test_what_is_no_refresh_token_is_a_401(self, service: Service, token: str) -> None:
        response = await refresh(service, token)

        assert response.status_code == 401
        assert response.json()["code"] == "INVALID_REFRESH_TOKEN"

    async def test_a_token_of_a_session_that_never_was_is_a_401(self, service: Service) -> None:
        signer = service.signer

        assert (await refresh(service, signer.sign_refresh(uuid4(), 1))).status_code == 401


class TestLogOut:
    async def test_the_very_next_call_is_a_401(self, service: Service, database: AsyncDatabaseManager) -> None:
        await create_account(service)
        who = await log_in(service)

        response = await service.client.post("/auth/logout", headers=who.bearer)

        assert response.status_code == 204
        assert (await me(service, who)).status_code == 401
        assert (await refresh(service, who.refresh_token)).status_code == 401
        assert (await only_session(database)).revoked_at is not None

    async def test_a_refresh_token_does_when_the_access_token_has_expired(self, service: Service) -> None:
        await create_account(service)
        who = await log_in(service)

        for _ in range(2):
            response = await service.client.post("/auth/logout", json={"refresh_token": who.refresh_token})
            assert response.status_code == 204

        assert (await me(service, who)).status_code == 401

    async def test_other_sessions_go_on(self, service: Service) -> None:
        await create_account(service)
        who, other = await log_in(service), await log_in(service)

        await service.client.post("/auth/logout", headers=who.bearer)

        assert (await me(service, other)).status_code == 200

    async def test_without_any_token_it_is_a_401(self, service: Service) -> None:
        response = await service.client.post("/auth/logout")

        assert response.status_code == 401
        assert response.json()["code"] == "UNAUTHORIZED"

    async def test_a_wrong_refresh_token_is_a_401(self, service: Service) -> None:
        response = await service.client.post("/auth/logout", json={"refresh_token": "wrong"})

        assert response.json()["code"] == "INVALID_REFRESH_TOKEN"


class TestMySessions:
    async def list(self, service: Service, who: LoggedIn) -> list[dict[str, object]]:
        response = await service.client.get("/auth/sessions", headers=who.bearer)
        assert response.status_code == 200, response.text
        items: list[dict[str, object]] = response.json()["items"]
        return items

    async def test_they_are_listed_the_newest_first_with_what_their_owner_recognises(self, service: Service) -> None:
        await create_account(service)
        older = read_tokens(await post_log_in(service, **{"User-Agent": "Older\x1b[31m" + "x" * 300}))
        newer = read_tokens(await post_log_in(service, **{"User-Agent": "Newer"}))

        items = await self.list(service, older)

        assert [item["current"] for item in items] == [False, True]
        assert items[0]["user_agent"] == "Newer"
        assert str(items[1]["user_agent"]).startswith("Older[31mxxx")
        assert len(str(items[1]["user_agent"])) == 255
        assert {item["client_address"] for item in items} == {"127.0.0.1"}
        assert items[0].keys() == {
            "id",
            "created_at",
            "last_used_at",
            "expires_at",
            "client_address",
            "user_agent",
            "current",
        }
        assert (await self.list(service, newer))[0]["current"] is True

    async def test_last_used_is_moved_by_a_refresh_and_not_by_a_read(self, service: Service) -> None:
        await create_account(service)
        who = await log_in(service)
        [started] = await self.list(service, who)
        await me(service, who)
        [after_read] = await self.list(service, who)

        await refresh(service, who.refresh_token)

        [after_refresh] = await self.list(service, who)
        assert after_read == started
        assert str(after_refresh["last_used_at"]) > str(started["last_used_at"])

    async def test_ended_and_foreign_sessions_are_not_listed(self, service: Service) -> None:
        await create_account(service)
        await create_account(service, "bob@example.com")
        who, ended = await log_in(service), await log_in(service)
        await log_in(service, "bob@example.com")
        await service.client.post("/auth/logout", headers=ended.bearer)

        assert len(await self.list(service, who)) == 1

    async def test_one_can_be_revoked(self, service: Service) -> None:
        await create_account(service)
        who, other = await log_in(service), await log_in(service)
        other_id = next(item["id"] for item in await self.list(service, other) if item["current"])

        response = await service.client.delete(f"/auth/sessions/{other_id}", headers=who.bearer)

        assert response.status_code == 204
        assert (await me(service, other)).status_code == 401
        assert (await me(service, who)).status_code == 200
        response = await service.client.delete(f"/auth/sessions/{other_id}", headers=who.bearer)
        assert response.status_code == 404
        assert response.json()["code"] == "SESSION_NOT_FOUND"

    async def test_somebody_elses_is_a_404_and_goes_on(self, service: Service) -> None:
        await create_account(service)
        await create_account(service, "bob@example.com")
        ana, bob = await log_in(service), await log_in(service, "bob@example.com")
        [of_bob] = await self.list(service, bob)

        response = await service.client.delete(f"/auth/sessions/{of_bob['id']}", headers=ana.bearer)

        assert response.status_code == 404
        assert (await me(service, bob)).status_code == 200

    async def test_all_others_can_be_revoked_at_once(self, service: Service) -> None:
        await create_account(service)
        await create_account(service, "bob@example.com")
        bob = await log_in(service, "bob@example.com")
        logged_in = [await log_in(service) for _ in range(3)]

        response = await service.client.delete("/auth/sessions", headers=logged_in[1].bearer)

        assert response.status_code == 204
        assert [(await me(service, each)).status_code for each in (*logged_in, bob)] == [401, 200, 401, 200]


async def test_a_person_sees_their_whole_record(service: Service) -> None:
    user_id = await create_account(service, name="Ana")
    who = await log_in(service)

    mine = (await me(service, who)).json()
    read = (await service.client.get(f"/api/users/{user_id}", headers=who.bearer)).json()

    assert mine == read | {"second_factor": {"is_set": False, "recovery_codes_left": 0}}
    assert read.keys() == {
        "id",
        "email",
        "name",
        "is_active",
        "is_admin",
        "activated_at",
        "last_login_at",
        "created_at",
        "updated_at",
    }
    assert (mine["email"], mine["is_admin"]) == ("ana@example.com", False)


async def test_a_disabled_users_access_token_stops_at_once(service: Service, database: AsyncDatabaseManager) -> None:
    user_id = await create_account(service)
    who = await log_in(service)
    await change(database, UserModel, is_active=False)

    assert (await me(service, who)).status_code == 401
    assert (await service.client.get(f"/api/users/{user_id}", headers=who.bearer)).status_code == 401


async def test_no_secret_of_a_session_is_stored(service: Service, database: AsyncDatabaseManager) -> None:
    await create_account(service)
    who = await log_in(service)

    async with database.session() as session:
        dump = str((await session.execute(text("SELECT * FROM sessions"))).all())

    for token in (who.access_token, who.refresh_token):
        assert token.rpartition(".")[2] not in dump
