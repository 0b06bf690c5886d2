"""What administrators and other services do about users: disable, remove, recover, log out."""

from typing import Any

import pytest
from httpx import Response
from sqlalchemy import select

from src.db import AsyncDatabaseManager
from src.db.models import UserModel
from src.db.repositories import OutboxRepository, UserTokenRepository
from tests.support.databases import rows_about_people
from tests.support.factories import add_users
from tests.support.service import MailingService, Service, StartMailingService, StartService
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    UNKNOWN_ID,
    LoggedIn,
    bearer,
    create_account,
    create_admin,
    create_client,
    leave,
    log_in,
    me,
    post_log_in,
    refresh,
    refusal,
    request_reset,
    reset,
    service_token,
    sign_up,
)


@pytest.fixture
async def admin(service: Service) -> LoggedIn:
    return await create_admin(service)


async def ask(
    service: Service, headers: dict[str, str], method: str, user_id: str, path: str = "", **body: Any
) -> Response:
    url = f"/api/users/{user_id}{path}"
    return await service.client.request(method, url, json=body or None, headers=headers)


class TestDisabling:
    async def test_it_ends_sessions_links_and_the_emails_that_would_bring_more_at_once(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        service, admin = mailing_service, await create_admin(mailing_service)
        ana_id = await create_account(service)
        ana = await log_in(service)
        await request_reset(service)
        link = service.mailbox.token()
        service.mailbox.failure = OSError("the mail server is away")
        body = {"new_email": "new@example.com", "current_password": PASSWORD}
        await service.client.post("/auth/email-change/request", json=body, headers=ana.bearer)

        response = await ask(service, admin.bearer, "PATCH", ana_id, is_active=False)

        assert (response.status_code, response.json()["is_active"]) == (200, False)
        assert (await me(service, ana)).status_code == 401
        assert (await refresh(service, ana.refresh_token)).status_code == 401
        assert refusal(await post_log_in(service)) == (401, "INVALID_CREDENTIALS", [])
        assert refusal(await reset(service, link)) == (400, "INVALID_TOKEN", [])
        async with database.session() as session:
            assert await OutboxRepository(session).list_unsent(limit=9) == []

    async def test_who_is_enabled_again_logs_in_anew(self, mailing_service: MailingService) -> None:
        service, admin = mailing_service, await create_admin(mailing_service)
        ana_id = await create_account(service)
        before = await log_in(service)
        await request_reset(service)
        link = service.mailbox.token()

        for is_active in (False, True):
            await ask(service, admin.bearer, "PATCH", ana_id, is_active=is_active)

        after = await log_in(service)
        assert (await me(service, after)).status_code == 200
        assert (await me(service, before)).status_code == 401
        assert (await refresh(service, before.refresh_token)).status_code == 401
        assert refusal(await reset(service, link)) == (400, "INVALID_TOKEN", [])

    async def test_administrators_may_disable_themselves_while_another_remains(
        self, service: Service, admin: LoggedIn
    ) -> None:
        other = await create_admin(service, "other@example.com")

        response = await ask(service, admin.bearer, "PATCH", admin.user_id, is_active=False)

        assert response.status_code == 200
        assert (await me(service, admin)).status_code == 401
        assert (await me(service, other)).status_code == 200


class TestTheLastAdministrator:
    async def test_cannot_be_demoted_disabled_or_removed_nor_leave(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        # Neither of these could stand in.
        await add_users(
            database,
            {"email": "disabled@example.com", "is_admin": True, "is_active": False},
            {"email": "invited@example.com", "is_admin": True, "is_active": False, "activated_at": None},
            {"email": "person@example.com"},
        )
        me_before = (await me(service, admin)).json()

        answers = [
            await ask(service, admin.bearer, "PATCH", admin.user_id, is_admin=False),
            await ask(service, admin.bearer, "PATCH", admin.user_id, is_active=False),
            await ask(service, admin.bearer, "PATCH", admin.user_id, name="Bo", is_admin=False, is_active=True),
            await ask(service, admin.bearer, "DELETE", admin.user_id),
            await leave(service, admin),
        ]

        assert [refusal(answer) for answer in answers] == [(409, "LAST_ADMIN", [])] * 5
        assert (await me(service, admin)).json() == me_before

    async def test_may_still_be_renamed_and_confirmed(self, service: Service, admin: LoggedIn) -> None:
        response = await ask(service, admin.bearer, "PATCH", admin.user_id, name="Root", is_admin=True, is_active=True)

        assert (response.status_code, response.json()["name"]) == (200, "Root")

    async def test_stops_being_the_last_when_another_is_enabled(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        [other] = await add_users(database, {"email": "other@example.com", "is_admin": True, "is_active": False})
        await ask(service, admin.bearer, "PATCH", other, is_active=True)

        assert (await leave(service, admin)).status_code == 204

    async def test_may_remove_an_administrator_who_is_disabled_already(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        [other] = await add_users(database, {"email": "other@example.com", "is_admin": True, "is_active": False})

        assert (await ask(service, admin.bearer, "PATCH", other, is_admin=False)).status_code == 200
        assert (await ask(service, admin.bearer, "PATCH", other, is_admin=True)).status_code == 200
        assert (await ask(service, admin.bearer, "DELETE", other)).status_code == 204


class TestRemoving:
    async def test_nothing_about_the_person_is_left_in_any_table_and_they_are_told(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        service, admin = mailing_service, await create_admin(mailing_service)
        await request_reset(service)  # of an address that is nobody's yet
        ana_id = await create_account(service, name="Ana the Unique")
        ana = await log_in(service)
        await request_reset(service)
        await sign_up(service)  # somebody tries the address again: that row holds the address too
        traces = (ana_id, "ana@example.com", "Ana the Unique")
        assert [trace in str(await rows_about_people(database)) for trace in traces] == [True] * 3

        response = await ask(service, admin.bearer, "DELETE", ana_id)

        assert (response.status_code, response.content) == (204, b"")
        assert [trace in str(await rows_about_people(database)) for trace in traces] == [False] * 3
        assert (service.mailbox.messages[-1].to, service.mailbox.messages[-1].subject) == (
            "ana@example.com",
            "Your account was removed",
        )
        assert (await me(service, ana)).status_code == 401
        assert (await refresh(service, ana.refresh_token)).status_code == 401
        assert refusal(await post_log_in(service)) == (401, "INVALID_CREDENTIALS", [])

    async def test_the_address_is_free_again_and_the_user_is_unknown(self, service: Service, admin: LoggedIn) -> None:
        first = await create_account(service)

        assert (await ask(service, admin.bearer, "DELETE", first)).status_code == 204

        answers = [
            await ask(service, admin.bearer, "GET", first),
            await ask(service, admin.bearer, "PATCH", first, name="Bo"),
            await ask(service, admin.bearer, "DELETE", first),
            await ask(service, admin.bearer, "GET", first, "/sessions"),
            await ask(service, admin.bearer, "DELETE", first, "/sessions"),
        ]
        assert [refusal(answer) for answer in answers] == [(404, "USER_NOT_FOUND", [])] * 5
        assert await create_account(service) != first

    async def test_a_sign_up_that_waits_can_be_removed_and_nobody_is_written_to(
        self, mailing_service: MailingService
    ) -> None:
        service, admin = mailing_service, await create_admin(mailing_service)
        waiting = (await sign_up(service))["user_id"]
        link = service.mailbox.token()
        service.mailbox.messages.clear()

        response = await ask(service, admin.bearer, "DELETE", waiting)

        assert response.status_code == 204
        assert service.mailbox.messages == []
        activation = await service.client.post("/auth/activate", json={"token": link})
        assert refusal(activation) == (400, "INVALID_TOKEN", [])

    async def test_of_another_version_is_a_412_and_of_this_one_a_204(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        [bob] = await add_users(database, {"email": "bob@example.com"})
        stale = (await ask(service, admin.bearer, "GET", bob)).headers["etag"]
        current = (await ask(service, admin.bearer, "PATCH", bob, name="Bob")).headers["etag"]

        refused = await ask(service, admin.bearer | {"If-Match": stale}, "DELETE", bob)
        still_there = await ask(service, admin.bearer, "GET", bob)
        removed = await ask(service, admin.bearer | {"If-Match": current}, "DELETE", bob)

        assert refusal(refused) == (412, "PRECONDITION_FAILED", [])
        assert (still_there.status_code, removed.status_code) == (200, 204)


class TestSendingAPasswordReset:
    async def test_the_link_goes_to_the_user_and_to_nobody_else(
        self, start_mailing_service: StartMailingService
    ) -> None:
        service = await start_mailing_service(auth_return_token_in_response=True)
        admin = await create_admin(service)
        answer = await sign_up(service)
        await service.client.post("/auth/activate", json={"token": answer["activation_url"].partition("token=")[2]})

        response = await ask(service, admin.bearer, "POST", answer["user_id"], "/password-reset")

        assert response.status_code == 202
        assert response.json() == {"detail": "A link is on its way to the user."}
        assert [message.to for message in service.mailbox.messages] == ["ana@example.com"]
        assert "An administrator asked you to" in service.mailbox.messages[-1].text
        assert (await reset(service, service.mailbox.token())).status_code == 204
        await log_in(service, password=NEW_PASSWORD)

    async def test_who_is_disabled_waits_or_is_unknown_is_not_written_to(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        service, admin = mailing_service, await create_admin(mailing_service)
        disabled, waiting = await add_users(
            database,
            {"email": "disabled@example.com", "is_active": False},
            {"email": "waiting@example.com", "is_active": False, "activated_at": None},
        )

        answers = [
            await ask(service, admin.bearer, "POST", id_, "/password-reset") for id_ in (disabled, waiting, UNKNOWN_ID)
        ]

        assert [refusal(answer) for answer in answers] == [
            (409, "USER_DISABLED", []),
            (409, "USER_PENDING", []),
            (404, "USER_NOT_FOUND", []),
        ]
        assert service.mailbox.messages == []

    async def test_without_smtp_it_is_a_409_that_says_so_and_makes_no_link(
        self, start_service: StartService, database: AsyncDatabaseManager
    ) -> None:
        service = await start_service(auth_return_token_in_response=True)
        admin = await create_admin(service)
        [bob] = await add_users(database, {"email": "bob@example.com"})

        response = await ask(service, admin.bearer, "POST", bob, "/password-reset")

        assert refusal(response) == (409, "MAIL_NOT_CONFIGURED", [])
        assert "SMTP_HOST" in response.json()["detail"]
        async with database.session() as session:
            assert await UserTokenRepository(session).count() == 0


class TestSessions:
    async def test_they_are_listed_and_only_ones_own_can_be_the_current_one(
        self, service: Service, admin: LoggedIn
    ) -> None:
        ana_id = await create_account(service)
        for browser in ("first", "second"):
            await service.client.post(
                "/auth/login",
                json={"email": "ana@example.com", "password": PASSWORD},
                headers={"User-Agent": browser},
            )

        anas = await ask(service, admin.bearer, "GET", ana_id, "/sessions")
        own = await ask(service, admin.bearer, "GET", admin.user_id, "/sessions")

        assert anas.status_code == 200
        assert [(each["user_agent"], each["current"]) for each in anas.json()["items"]] == [
            ("second", False),
            ("first", False),
        ]
        assert [each["current"] for each in own.json()["items"]] == [True]
        assert own.json() == (await service.client.get("/auth/sessions", headers=admin.bearer)).json()

    async def test_all_of_a_user_end_at_once_and_those_of_others_go_on(self, service: Service, admin: LoggedIn) -> None:
        ana_id = await create_account(service)
        sessions = [await log_in(service) for _ in range(2)]

        response = await ask(service, admin.bearer, "DELETE", ana_id, "/sessions")

        assert response.status_code == 204
        assert [(await me(service, each)).status_code for each in sessions] == [401, 401]
        assert (await refresh(service, sessions[0].refresh_token)).status_code == 401
        assert (await ask(service, admin.bearer, "GET", ana_id, "/sessions")).json() == {"items": []}
        assert (await me(service, admin)).status_code == 200
        await log_in(service)


class TestAnotherService:
    """With `users:write`: it may look after people, but it may not touch an administrator, nor make one."""

    async def test_does_what_an_administrator_does_about_people(self, mailing_service: MailingService) -> None:
        service = mailing_service
        ana_id = await create_account(service)
        writer = bearer(await service_token(service, await create_client(service, "users:write")))

        statuses = [
            (await ask(service, writer, "PATCH", ana_id, name="Bo")).status_code,
            (await ask(service, writer, "POST", ana_id, "/password-reset")).status_code,
            (await ask(service, writer, "DELETE", ana_id, "/sessions")).status_code,
            (await ask(service, writer, "PATCH", ana_id, is_active=False)).status_code,
            (await ask(service, writer, "DELETE", ana_id)).status_code,
            (await service.client.post("/api/users", json={"email": "b@example.com"}, headers=writer)).status_code,
        ]

        assert statuses == [200, 202, 204, 200, 204, 201]

    async def test_is_shown_no_more_of_a_user_than_it_may_read(self, service: Service) -> None:
        ana_id = await create_account(service)
        writer = bearer(await service_token(service, await create_client(service, "users:write")))
        both_clients = await create_client(service, "users:read", "users:write", name="both")
        both = bearer(await service_token(service, both_clients))

        shown = [await ask(service, caller, "PATCH", ana_id, name="Bo") for caller in (writer, both)]

        assert shown[0].json().keys() == {"id", "name", "is_active", "created_at"}
        assert shown[1].json()["email"] == "ana@example.com"
        for answer, caller in zip(shown, (writer, both), strict=True):
            read = await service.client.get(f"/api/users/{ana_id}", headers=caller)
            assert read.headers["etag"] == answer.headers["etag"]

    async def test_cannot_touch_an_administrator(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        service, admin = mailing_service, await create_admin(mailing_service)
        await create_admin(service, "other@example.com")
        writer = bearer(await service_token(service, await create_client(service, "users:write", "users:read")))
        [invited] = await add_users(
            database, {"email": "chief@example.com", "is_admin": True, "is_active": False, "activated_at": None}
        )
        before = (await me(service, admin)).json()

        answers = [
            await ask(service, writer, "PATCH", admin.user_id, name="Bo"),
            await ask(service, writer, "PATCH", admin.user_id, is_active=False),
            await ask(service, writer, "POST", admin.user_id, "/password-reset"),
            await ask(service, writer, "DELETE", admin.user_id, "/sessions"),
            await ask(service, writer, "DELETE", admin.user_id),
            await ask(service, writer, "DELETE", invited),
            await service.client.post("/api/users", json={"email": "chief@example.com"}, headers=writer),
        ]

        assert [refusal(answer) for answer in answers] == [(403, "FORBIDDEN", [])] * 7
        assert (await me(service, admin)).json() == before
        assert (await ask(service, admin.bearer, "GET", invited)).json()["is_admin"]
        assert service.mailbox.messages == []

    async def test_can_neither_make_nor_demote_an_administrator(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        writer = bearer(await service_token(service, await create_client(service, "users:write")))
        [bob] = await add_users(database, {"email": "bob@example.com", "name": "Bob"})
        invitation = {"email": "chief@example.com", "is_admin": True}

        answers = [
            await ask(service, writer, "PATCH", bob, name="Bo", is_admin=True),
            await ask(service, writer, "PATCH", bob, is_admin=False),
            await ask(service, writer, "PATCH", admin.user_id, is_admin=False),
            await service.client.post("/api/users", json=invitation, headers=writer),
        ]

        assert [refusal(answer) for answer in answers] == [(403, "FIELDS_FORBIDDEN", ["is_admin"])] * 4
        async with database.session() as session:
            users = (await session.scalars(select(UserModel).order_by(UserModel.id))).all()
        assert [(user.email, user.name, user.is_admin) for user in users] == [
            ("admin@example.com", None, True),
            ("bob@example.com", "Bob", False),
        ]


async def test_a_right_is_given_by_true_and_by_nothing_that_looks_like_it(service: Service, admin: LoggedIn) -> None:
    ana_id = await create_account(service)

    answers = [await ask(service, admin.bearer, "PATCH", ana_id, is_admin=value) for value in ("on", "true", 1)]

    assert [refusal(answer) for answer in answers] == [(422, "VALIDATION_ERROR", ["is_admin"])] * 3
