"""Somebody is invited, and chooses a password by the link in their email."""

import asyncio
import re
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import select, update
from starlette.applications import Starlette
from starlette.routing import Mount

from src.core.passwords import verify_password
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import UserModel
from src.services.purge import purge
from tests.support.factories import expire_links
from tests.support.service import MANY_EMAILS, MailingService, Service, StartMailingService, StartService, make_settings
from tests.support.steps import (
    PASSWORD,
    LoggedIn,
    activate,
    bearer,
    create_account,
    create_admin,
    create_client,
    log_in,
    me,
    post_log_in,
    refusal,
    service_token,
    sign_up,
    token_of,
)

INVALID_TOKEN: tuple[int, str, list[str]] = (400, "INVALID_TOKEN", [])


@pytest.fixture
async def admin(service: Service) -> LoggedIn:
    return await create_admin(service)


async def invite(service: Service, who: LoggedIn, email: str = "ana@example.com", **body: Any) -> Response:
    return await service.client.post("/api/users", json={"email": email} | body, headers=who.bearer)


async def invited(service: Service, who: LoggedIn, email: str = "ana@example.com", **body: Any) -> str:
    """The token of an invitation."""
    response = await invite(service, who, email, **body)
    assert response.status_code == 201, response.text
    return token_of(response.json()["invitation_url"])


async def accept(service: Service, token: str, password: str = PASSWORD) -> Response:
    return await service.client.post("/auth/invitation/accept", json={"token": token, "password": password})


async def rows(database: AsyncDatabaseManager, email: str = "ana@example.com") -> list[UserModel]:
    async with database.session() as session:
        return list(await session.scalars(select(UserModel).where(UserModel.email == email)))


class TestInviting:
    async def test_the_link_is_mailed_to_the_person_alone(self, mailing_service: MailingService) -> None:
        admin = await create_admin(mailing_service)

        response = await invite(mailing_service, admin, name="Ana")

        assert response.status_code == 201
        assert response.json() == {"user_id": response.json()["user_id"], "invitation_url": None}
        assert [message.to for message in mailing_service.mailbox.messages] == ["ana@example.com"]
        accepted = await accept(mailing_service, mailing_service.mailbox.token())
        assert accepted.json() == {"user_id": response.json()["user_id"], "is_active": True}

    @pytest.mark.parametrize(("locale", "subject"), [("en", "You are invited"), ("pt-BR", "Você recebeu um convite")])
    async def test_the_email_shows_the_link_in_every_language(
        self, start_mailing_service: StartMailingService, locale: str, subject: str
    ) -> None:
        service = await start_mailing_service(
            auth_default_locale=locale, auth_invitation_url_template="https://app.example/join?token={token}"
        )

        await invite(service, await create_admin(service), name="Ana")

        [message] = service.mailbox.messages
        assert message.subject == subject
        link = f"https://app.example/join?token={service.mailbox.token()}"
        assert link in message.text
        assert f'href="{link}"' in message.html

    async def test_the_link_is_in_the_answer_where_smtp_is_not_configured(
        self, service: Service, admin: LoggedIn
    ) -> None:
        url = (await invite(service, admin)).json()["invitation_url"]

        assert url.startswith("http://localhost:8000/invitation?token=")
        assert (await accept(service, token_of(url))).status_code == 200

    async def test_the_link_is_in_the_answer_by_the_explicit_setting(
        self, start_mailing_service: StartMailingService
    ) -> None:
        service = await start_mailing_service(auth_return_token_in_response=True)

        url = (await invite(service, await create_admin(service))).json()["invitation_url"]

        assert service.mailbox.messages == []
        assert (await accept(service, token_of(url))).status_code == 200

    async def test_an_owned_address_is_a_409_however_it_is_written(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        await create_account(service)

        response = await invite(service, admin, "ANA@Example.com")

        assert refusal(response) == (409, "USER_EMAIL_TAKEN", [])
        assert len(await rows(database)) == 1

    async def test_what_cannot_be_invited_is_a_422_that_names_it(self, service: Service, admin: LoggedIn) -> None:
        wrong = {"email": "not-an-address", "name": "a\0b", "is_admin": None, "is_active": True, "password": PASSWORD}
        bodies = {field: {"email": "ana@example.com", field: value} for field, value in wrong.items()}

        refusals = {
            field: refusal(await service.client.post("/api/users", json=body, headers=admin.bearer))
            for field, body in bodies.items()
        }

        assert refusals == {field: (422, "VALIDATION_ERROR", [field]) for field in wrong}

    async def test_a_new_invitation_takes_the_place_of_the_older_one(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        first = (await invite(service, admin, name="Ana", is_admin=True)).json()
        second = (await invite(service, admin, "ANA@example.com")).json()

        assert second["user_id"] == first["user_id"]
        [row] = await rows(database)
        assert (row.name, row.is_admin) == (None, False)
        assert refusal(await accept(service, token_of(first["invitation_url"]))) == INVALID_TOKEN
        assert (await accept(service, token_of(second["invitation_url"]))).status_code == 200

    @pytest.mark.slow
    async def test_many_of_one_new_address_at_once_leave_one_row_and_one_link(
        self, start_service: StartService, database: AsyncDatabaseManager
    ) -> None:
        service = await start_service(**MANY_EMAILS)
        # By a service: those of one administrator wait for each other anyway.
        writer = bearer(await service_token(service, await create_client(service, "users:write")))
        body = {"email": "ana@example.com"}

        responses = await asyncio.gather(
            *(service.client.post("/api/users", json=body, headers=writer) for _ in range(25))
        )

        assert Counter(response.status_code for response in responses) == {201: 25}
        assert len(await rows(database)) == 1
        accepted = [await accept(service, token_of(each.json()["invitation_url"])) for each in responses]
        assert Counter(response.status_code for response in accepted) == {200: 1, 400: 24}


class TestBeforeAcceptance:
    async def test_no_password_logs_in(self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn) -> None:
        await invited(service, admin)
        [row] = await rows(database)

        guesses = ("", "!", row.hashed_password, PASSWORD)

        refusals = [refusal(await post_log_in(service, password=each)) for each in guesses]
        assert refusals == [(401, "INVALID_CREDENTIALS", [])] * 4
        assert [each for each in guesses if verify_password(each, row.hashed_password, rounds=4)] == []

    async def test_the_person_is_written_to_in_no_other_way(self, mailing_service: MailingService) -> None:
        admin = await create_admin(mailing_service)
        await invite(mailing_service, admin)
        mailing_service.mailbox.messages.clear()

        for path in ("/auth/activation/resend", "/auth/password-reset/request"):
            response = await mailing_service.client.post(path, json={"email": "ana@example.com"})
            assert response.status_code == 202

        assert mailing_service.mailbox.messages == []

    async def test_the_user_waits_and_is_no_administrator_yet(self, service: Service, admin: LoggedIn) -> None:
        await invited(service, admin, is_admin=True)

        listed = await service.client.get("/api/users", params={"is_admin": True}, headers=admin.bearer)
        pending = await service.client.get("/api/users", params={"pending": True}, headers=admin.bearer)

        assert [user["email"] for user in listed.json()["items"]] == ["admin@example.com"]
        [ana] = pending.json()["items"]
        assert (ana["email"], ana["is_active"], ana["activated_at"]) == ("ana@example.com", False, None)


class TestAccepting:
    async def test_makes_an_active_account_with_the_chosen_password(self, service: Service, admin: LoggedIn) -> None:
        token = await invited(service, admin, name="Ana")

        response = await accept(service, token)

        assert response.status_code == 200
        record = (await me(service, await log_in(service))).json()
        assert (record["name"], record["is_active"], record["is_admin"]) == ("Ana", True, False)
        assert (record["id"], True) == (response.json()["user_id"], response.json()["is_active"])

    async def test_makes_an_administrator_of_who_was_invited_as_one(self, service: Service, admin: LoggedIn) -> None:
        await accept(service, await invited(service, admin, is_admin=True))

        ana = await log_in(service)
        assert (await service.client.get("/api/users", headers=ana.bearer)).status_code == 200

    @pytest.mark.parametrize("end", ["demoted", "disabled", "removed", "left"])
    async def test_makes_no_administrator_once_one_has_lost_their_rights(
        self, service: Service, admin: LoggedIn, end: str
    ) -> None:
        evil = await create_admin(service, "evil@example.com")
        token = await invited(service, evil, is_admin=True)
        url = f"/api/users/{evil.user_id}"
        if end == "removed":
            await service.client.delete(url, headers=admin.bearer)
        elif end == "left":
            body = {"current_password": PASSWORD}
            await service.client.post("/auth/delete-account", json=body, headers=evil.bearer)
        else:
            changes = {"demoted": {"is_admin": False}, "disabled": {"is_active": False}}[end]
            await service.client.patch(url, json=changes, headers=admin.bearer)

        response = await accept(service, token)

        assert response.status_code == 200
        assert (await me(service, await log_in(service))).json()["is_admin"] is False

    async def test_as_an_administrator_is_told_by_its_event(self, service: Service, admin: LoggedIn) -> None:
        await accept(service, await invited(service, admin, is_admin=True))

        url = "/api/audit-events?kind=invitation_acceptance"
        [event] = (await service.client.get(url, headers=admin.bearer)).json()["items"]
        assert event["changes"] == "is_admin=true"

    async def test_wrong_used_and_expired_look_the_same(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        used, expired = await invited(service, admin), await invited(service, admin, "bob@example.com")
        await accept(service, used)
        await expire_links(database)

        answers = [await accept(service, token) for token in (used, expired, "wrong")]

        assert [refusal(answer) for answer in answers] == [INVALID_TOKEN] * 3
        assert len({answer.text for answer in answers}) == 1

    async def test_a_weak_password_does_not_spend_the_link(self, service: Service, admin: LoggedIn) -> None:
        token = await invited(service, admin)

        refusals = [refusal(await accept(service, token, each)) for each in ("", "short", "ana@example.com")]

        assert refusals == [(422, "VALIDATION_ERROR", ["password"])] * 3
        assert (await accept(service, token)).status_code == 200

    @pytest.mark.slow
    async def test_of_twenty_at_once_one_is_accepted(self, service: Service, admin: LoggedIn) -> None:
        token = await invited(service, admin)

        responses = await asyncio.gather(*(accept(service, token, f"{PASSWORD}-{number}") for number in range(20)))

        assert Counter(response.status_code for response in responses) == {200: 1, 400: 19}
        [winner] = [number for number, response in enumerate(responses) if response.status_code == 200]
        await log_in(service, password=f"{PASSWORD}-{winner}")

    async def test_ends_the_sign_ups_of_the_address(self, service: Service, admin: LoggedIn) -> None:
        token = await invited(service, admin)
        strangers = await sign_up(service, password="the-strangers-password")

        await accept(service, token)

        assert refusal(await activate(service, token_of(strangers["activation_url"]))) == INVALID_TOKEN
        assert (await service.client.get(f"/api/users/{strangers['user_id']}")).status_code == 404
        await log_in(service)

    async def test_is_too_late_when_a_sign_up_of_the_address_was_confirmed(
        self, service: Service, database: AsyncDatabaseManager, admin: LoggedIn
    ) -> None:
        token = await invited(service, admin, is_admin=True)
        await create_account(service)

        assert refusal(await accept(service, token, "another-pass-12-chars")) == INVALID_TOKEN

        [row] = await rows(database)
        assert not row.is_admin
        await log_in(service)

    async def test_takes_no_other_link_and_the_link_opens_nothing_else(self, service: Service, admin: LoggedIn) -> None:
        invitation = await invited(service, admin)
        activation = token_of((await sign_up(service, "bob@example.com"))["activation_url"])
        reset = {"token": invitation, "new_password": PASSWORD}

        answers = [
            await accept(service, activation),
            await activate(service, invitation),
            await service.client.post("/auth/password-reset/confirm", json=reset),
            await service.client.post("/auth/email-change/confirm", json={"token": invitation}),
        ]

        assert [refusal(answer) for answer in answers] == [INVALID_TOKEN] * 4
        assert (await accept(service, invitation)).status_code == 200
        assert (await activate(service, activation)).status_code == 200


class TestPage:
    async def test_opening_it_changes_nothing_however_often(self, service: Service, admin: LoggedIn) -> None:
        token = await invited(service, admin)

        for method in ("GET", "HEAD") * 10:
            response = await service.client.request(method, "/invitation", params={"token": token})
            assert response.status_code == 200

        assert (await accept(service, token)).status_code == 200

    async def test_its_form_finds_its_way_under_a_path_prefix(self, service: Service, admin: LoggedIn) -> None:
        token = await invited(service, admin)
        prefixed = Starlette(routes=[Mount("/accounts", app=service.app)])

        async with AsyncClient(transport=ASGITransport(app=prefixed), base_url="http://test") as client:
            page = await client.get("/accounts/invitation", params={"token": token})
            action = re.findall(r'action="([^"]+)"', page.text)[0]
            form = {"token": token, "new_password": PASSWORD}
            accepted = await client.post(page.url.join(action), data=form)
            again = await client.post(page.url.join(action), data=form)

        assert "ana@example.com" in page.text
        assert (accepted.status_code, "Your account is ready" in accepted.text) == (200, True)
        assert (again.status_code, "This link is not valid" in again.text) == (400, True)
        await log_in(service)

    async def test_a_weak_password_is_shown_its_reason_and_leaves_the_link(
        self, service: Service, admin: LoggedIn
    ) -> None:
        token = await invited(service, admin)

        for weak in ({}, {"new_password": "short"}):
            page = await service.client.post("/invitation", data={"token": token} | weak)
            assert page.status_code == 422
            assert "This password must have at least 12 characters." in page.text
            assert f'value="{token}"' in page.text
            assert "short" not in page.text

        form = {"token": token, "new_password": PASSWORD}
        assert (await service.client.post("/invitation", data=form)).status_code == 200

    async def test_a_link_that_is_not_valid_says_so(self, service: Service) -> None:
        activation = token_of((await sign_up(service))["activation_url"])

        for query in ("", "?token=wrong", "?token=%00", f"?token={activation}"):
            page = await service.client.get(f"/invitation{query}")
            assert page.status_code == 400
            assert "ask whoever invited you for a new one" in page.text


async def test_an_invitation_is_purged_when_its_last_link_has_expired_and_not_before(
    service: Service, database: AsyncDatabaseManager, admin: LoggedIn
) -> None:
    token = await invited(service, admin)
    async with database.session() as session:
        await session.execute(update(UserModel).values(created_at=utc_now() - timedelta(days=3)))
        await session.commit()

    await purge(database, make_settings())
    assert len(await rows(database)) == 1

    await expire_links(database)
    await purge(database, make_settings())
    assert await rows(database) == []
    assert refusal(await accept(service, token)) == INVALID_TOKEN
