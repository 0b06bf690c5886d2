"""Activation: a link makes one sign-up the owner of its address, once."""

import asyncio
import re
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from httpx import Response
from sqlalchemy import delete, text, update

from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import OutboxEmailModel, OutboxStatus, UserModel
from src.db.repositories import UserRepository, UserTokenRepository
from src.services.purge import purge
from tests.support.databases import count_statements, execute, recorded_statements, writing
from tests.support.factories import age_users, expire_links, make_user
from tests.support.hashing import count_hashes, hold, start_waiting, wait_until
from tests.support.outbox import change_emails, list_emails
from tests.support.service import MANY_EMAILS, MailingService, Service, StartMailingService, StartService
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    activate,
    create_account,
    create_admin,
    log_in,
    post_log_in,
    post_sign_up,
    refusal,
    resend,
    sign_up,
    token_of,
)


def outcomes(responses: list[Response]) -> Counter[tuple[int, str | None]]:
    return Counter((response.status_code, response.json().get("code")) for response in responses)


async def test_the_link_activates_the_account_and_logs_nobody_in(service: Service) -> None:
    answer = await sign_up(service)

    response = await activate(service, token_of(answer["activation_url"]))

    assert response.status_code == 200
    assert response.json() == {"user_id": answer["user_id"], "is_active": True}
    assert "set-cookie" not in response.headers
    assert (await service.client.get(f"/api/users/{answer['user_id']}")).json()["is_active"] is True


async def test_where_a_sign_up_came_from_is_forgotten_at_activation(
    service: Service, database: AsyncDatabaseManager
) -> None:
    user_id = await create_account(service)

    async with database.session() as session:
        assert (await UserRepository(session).get_by_id(UUID(user_id))).signed_up_from is None


async def test_a_link_works_once(service: Service) -> None:
    token = token_of((await sign_up(service))["activation_url"])
    await activate(service, token)

    response = await activate(service, token)

    assert response.status_code == 400
    assert response.json()["code"] == "INVALID_TOKEN"


async def test_wrong_used_and_expired_links_look_the_same(service: Service, database: AsyncDatabaseManager) -> None:
    used = token_of((await sign_up(service, "used@example.com"))["activation_url"])
    await activate(service, used)
    expired = token_of((await sign_up(service, "expired@example.com"))["activation_url"])
    await expire_links(database)

    responses = [await activate(service, token) for token in (used, expired, "never-issued", "ünïcode")]

    assert {response.status_code for response in responses} == {400}
    assert len({response.text for response in responses}) == 1
    assert len({tuple(response.headers) for response in responses}) == 1


class TestWhenOneSignUpWaits:
    async def test_a_password_that_is_sent_is_ignored(self, service: Service) -> None:
        token = token_of((await sign_up(service))["activation_url"])
        pool = count_hashes(service)

        response = await activate(service, token, password="weak")

        assert response.status_code == 200
        assert pool.count == 0
        await log_in(service, password=PASSWORD)

    async def test_an_invitation_of_the_address_does_not_count(self, service: Service) -> None:
        admin = await create_admin(service)
        await service.client.post("/api/users", json={"email": "ana@example.com"}, headers=admin.bearer)
        token = token_of((await sign_up(service))["activation_url"])

        assert (await activate(service, token)).status_code == 200

    async def test_one_that_is_over_does_not_count(self, service: Service, database: AsyncDatabaseManager) -> None:
        await sign_up(service)
        await age_users(database, hours=49)
        token = token_of((await sign_up(service))["activation_url"])

        assert (await activate(service, token)).status_code == 200


class TestWhenSeveralSignUpsWait:
    """One is the owner's, one a stranger's; nobody but their makers can tell which is which."""

    @pytest.fixture
    async def sign_ups(self, service: Service) -> list[dict[str, Any]]:
        passwords = ("the-strangers-password", "the-owners-own-password", "the-strangers-second-password")
        return [await sign_up(service, password=each) for each in passwords]

    async def test_a_link_alone_is_a_409_and_stays_good(self, service: Service, sign_ups: list[dict[str, Any]]) -> None:
        token = token_of(sign_ups[1]["activation_url"])

        assert refusal(await activate(service, token)) == (409, "PASSWORD_NEEDED", [])
        assert refusal(await activate(service, token, password=None)) == (409, "PASSWORD_NEEDED", [])
        assert (await activate(service, token, password=NEW_PASSWORD)).status_code == 200

    @pytest.mark.parametrize("password", ["", "short", "ana@example.com"])
    async def test_a_weak_password_is_a_422_and_the_link_stays_good(
        self, service: Service, sign_ups: list[dict[str, Any]], password: str
    ) -> None:
        token = token_of(sign_ups[1]["activation_url"])

        assert refusal(await activate(service, token, password=password)) == (422, "VALIDATION_ERROR", ["password"])
        assert (await activate(service, token, password=NEW_PASSWORD)).status_code == 200

    @pytest.mark.parametrize("clicked", [0, 1, 2])
    async def test_whichever_link_is_followed_the_new_password_is_the_only_one_that_works(
        self, service: Service, sign_ups: list[dict[str, Any]], clicked: int
    ) -> None:
        chosen = sign_ups[clicked]

        response = await activate(service, token_of(chosen["activation_url"]), password=NEW_PASSWORD)

        assert (response.status_code, response.json()["user_id"]) == (200, chosen["user_id"])
        await log_in(service, password=NEW_PASSWORD)
        for old in ("the-strangers-password", "the-owners-own-password", "the-strangers-second-password"):
            assert (await post_log_in(service, password=old)).status_code == 401

    async def test_the_others_end(self, service: Service, sign_ups: list[dict[str, Any]]) -> None:
        first, *others = sign_ups

        await activate(service, token_of(first["activation_url"]), password=NEW_PASSWORD)

        for other in others:
            again = await activate(service, token_of(other["activation_url"]), password=NEW_PASSWORD)
            assert refusal(again) == (400, "INVALID_TOKEN", [])
            assert (await service.client.get(f"/api/users/{other['user_id']}")).status_code == 404

    async def test_one_that_comes_after_the_click_counts(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        token = token_of((await sign_up(service))["activation_url"])
        async with writing(database) as session:
            await UserRepository(session).lock_addresses("ana@example.com")
            with recorded_statements(service.database) as statements:
                clicking = asyncio.create_task(activate(service, token))
                await wait_until(
                    lambda: service.database.write_lock.locked() or "FOR NO KEY UPDATE" in "".join(statements)
                )
            await UserRepository(session).add(make_user(activated_at=None, is_active=False))

        assert refusal(await clicking) == (409, "PASSWORD_NEEDED", [])

    async def test_no_connection_is_held_while_the_password_is_hashed(
        self, service: Service, sign_ups: list[dict[str, Any]]
    ) -> None:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pool = count_hashes(service)
        holding = await hold(pool, gate, jobs=2)
        clicking = await start_waiting(
            pool, activate(service, token_of(sign_ups[1]["activation_url"]), password=NEW_PASSWORD)
        )

        assert "Connections in pool: 1" in service.database.engine.pool.status()
        assert "Current Checked out connections: 0" in service.database.engine.pool.status()

        gate.set_result(None)
        assert (await clicking).status_code == 200
        await asyncio.gather(*holding)


class TestLife:
    """A sign-up lives for AUTH_ACTIVATION_TTL_SECONDS, 48 hours, whatever is asked meanwhile."""

    async def test_a_new_link_ends_with_the_sign_up(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        await sign_up(mailing_service)
        await age_users(database, hours=47)

        await resend(mailing_service)

        async with database.session() as session:
            [user], tokens = await UserRepository(session).list(), await UserTokenRepository(session).list()
        assert tokens[-1].expires_at == user.created_at + timedelta(hours=48)

    async def test_a_link_in_the_answer_ends_with_the_sign_up(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        await sign_up(service)

        async with database.session() as session:
            [user], [token] = await UserRepository(session).list(), await UserTokenRepository(session).list()
        assert token.expires_at == user.created_at + timedelta(hours=48)

    async def test_a_resend_brings_no_link_for_a_sign_up_that_is_over(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        await sign_up(mailing_service)
        await age_users(database, hours=49)
        await execute(database, delete(OutboxEmailModel))

        await resend(mailing_service)

        assert {email.status for email in await list_emails(database)} == {OutboxStatus.DROPPED}

    async def test_its_end_does_not_tell_whether_the_address_has_an_account(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        await create_account(mailing_service)
        known = (await sign_up(mailing_service))["user_id"]
        unknown = (await sign_up(mailing_service, "bob@example.com"))["user_id"]

        async def statuses() -> list[int]:
            return [(await mailing_service.client.get(f"/api/users/{id_}")).status_code for id_ in (known, unknown)]

        for hours in (47, 49):
            await age_users(database, hours=hours)
            for email in ("ana@example.com", "bob@example.com"):
                await resend(mailing_service, email)
            await mailing_service.dispatcher.dispatch_due()
            assert await statuses() == [200, 200]  # the purge comes every hour
            await purge(database, mailing_service.settings)
            assert await statuses() == ([200, 200] if hours == 47 else [404, 404])


async def test_a_link_for_an_address_that_is_owned_meanwhile_is_invalid(
    service: Service, database: AsyncDatabaseManager
) -> None:
    token = token_of((await sign_up(service))["activation_url"])
    async with database.session() as session:
        await UserRepository(session).add(UserModel(email="ana@example.com", hashed_password="<bcrypt-hash>"))
        await session.commit()

    response = await activate(service, token)

    assert response.status_code == 400
    assert response.json()["code"] == "INVALID_TOKEN"


async def test_no_link_revives_a_disabled_account(service: Service, database: AsyncDatabaseManager) -> None:
    answer = await sign_up(service)
    async with database.session() as session:
        await session.execute(update(UserModel).values(is_active=False, activated_at=utc_now()))
        await session.commit()

    assert (await activate(service, token_of(answer["activation_url"]))).json()["code"] == "INVALID_TOKEN"
    assert (await service.client.get(f"/api/users/{answer['user_id']}")).json()["is_active"] is False
    assert (await post_sign_up(service)).status_code == 409


@pytest.mark.slow
async def test_fifty_clicks_on_one_link_at_once(service: Service) -> None:
    token = token_of((await sign_up(service))["activation_url"])

    responses = await asyncio.gather(*(activate(service, token) for _ in range(50)))

    assert outcomes(responses) == {(200, None): 1, (400, "INVALID_TOKEN"): 49}


@pytest.mark.slow
async def test_twenty_sign_ups_of_one_address_activated_at_once(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service = await start_service(**MANY_EMAILS)
    tokens = [token_of((await sign_up(service))["activation_url"]) for _ in range(20)]

    responses = await asyncio.gather(
        *(activate(service, token, password=f"{NEW_PASSWORD}-{number}") for number, token in enumerate(tokens))
    )

    assert outcomes(responses) == {(200, None): 1, (400, "INVALID_TOKEN"): 19}
    async with database.session() as session:
        assert await UserRepository(session).count() == 1
    [winner] = [number for number, response in enumerate(responses) if response.status_code == 200]
    await log_in(service, password=f"{NEW_PASSWORD}-{winner}")


@pytest.mark.slow
async def test_twenty_sign_ups_of_one_address_activated_at_once_without_a_password(
    start_service: StartService,
) -> None:
    service = await start_service(**MANY_EMAILS)
    tokens = [token_of((await sign_up(service))["activation_url"]) for _ in range(20)]

    responses = await asyncio.gather(*(activate(service, token) for token in tokens))

    assert outcomes(responses) == {(409, "PASSWORD_NEEDED"): 20}


@pytest.mark.slow
async def test_activations_resends_and_sign_ups_of_one_address_at_once(
    start_mailing_service: StartMailingService, database: AsyncDatabaseManager
) -> None:
    mailing_service = await start_mailing_service(**MANY_EMAILS)
    for _ in range(10):
        await sign_up(mailing_service)
    tokens = [mailing_service.mailbox.token(index) for index in range(10)]

    responses = await asyncio.gather(
        *(activate(mailing_service, token, password=NEW_PASSWORD) for token in tokens),
        *(post_sign_up(mailing_service) for _ in range(10)),
        *(resend(mailing_service) for _ in range(10)),
    )

    assert Counter(response.status_code for response in responses) == {200: 1, 400: 9, 201: 10, 202: 10}
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM users WHERE activated_at IS NOT NULL")) == 1


async def names_behind_links(service: MailingService) -> list[str]:
    """The names that the pages show whose links were mailed."""
    tokens = (service.mailbox.token(index) for index in range(len(service.mailbox.messages)))
    pages = [await service.client.get("/activate", params={"token": token}) for token in tokens]
    return [re.findall("<dt>Name</dt><dd>(.+?)</dd>", page.text)[0] for page in pages]


class TestResend:
    async def test_every_address_gets_the_same_answer(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        await sign_up(mailing_service, "waiting@example.com")

        responses = [
            await resend(mailing_service, email)
            for email in ("ana@example.com", "waiting@example.com", "ghost@example.com")
        ]

        assert {response.status_code for response in responses} == {202}
        assert len({response.text for response in responses}) == 1
        assert len({tuple(response.headers) for response in responses}) == 1

    async def test_the_new_link_works_and_does_not_kill_the_older_one(self, mailing_service: MailingService) -> None:
        await sign_up(mailing_service, "ana@example.com")
        await sign_up(mailing_service, "bob@example.com")
        older = mailing_service.mailbox.token(0)

        await resend(mailing_service, "Ana@Example.com")
        await resend(mailing_service, "bob@example.com")

        assert (await activate(mailing_service, older)).status_code == 200
        assert (await activate(mailing_service, mailing_service.mailbox.token(-1))).status_code == 200

    async def test_each_of_the_three_newest_sign_ups_gets_its_own_link(self, mailing_service: MailingService) -> None:
        names = ("one", "two", "three", "four")
        for name in names:
            await sign_up(mailing_service, name=name)
        mailing_service.mailbox.messages.clear()

        await resend(mailing_service)

        assert sorted(await names_behind_links(mailing_service)) == ["four", "three", "two"]

    async def test_every_address_costs_the_same_statements(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        await create_account(mailing_service, "known@example.com")
        disabled = await create_account(mailing_service, "disabled@example.com")
        await execute(database, update(UserModel).where(UserModel.id == UUID(disabled)).values(is_active=False))
        for count in (1, 2, 3, 4):
            for _ in range(count):
                await sign_up(mailing_service, f"pending-{count}@example.com")

        counts = {
            name: await count_statements(mailing_service.database, resend(mailing_service, f"{name}@example.com"))
            for name in ("known", "disabled", "unknown", "pending-1", "pending-2", "pending-3", "pending-4")
        }

        assert counts == dict.fromkeys(counts, counts["unknown"])
        assert counts["unknown"]["INSERT"] == 3 + 2  # the emails, the limits and the event

    async def test_what_was_written_for_nobody_is_not_sent_and_forgotten(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        await resend(mailing_service, "ghost@example.com")
        emails = await list_emails(database)
        assert {(email.status, email.content) for email in emails} == {(OutboxStatus.DROPPED, None)}
        await change_emails(database, updated_at=utc_now() - timedelta(hours=1, seconds=1))

        await purge(database, mailing_service.settings)

        assert await list_emails(database) == []

    async def test_an_owner_is_told_that_they_have_an_account(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)

        await resend(mailing_service)

        assert mailing_service.mailbox.messages[-1].subject == "You already have an account"

    async def test_without_smtp_the_answer_holds_no_link(self, service: Service) -> None:
        await sign_up(service)

        response = await resend(service)

        assert response.status_code == 202
        assert response.json().keys() == {"detail"}


@pytest.mark.parametrize("token", ["", "x" * 513])
async def test_a_token_of_impossible_length_is_a_422(service: Service, token: str) -> None:
    response = await activate(service, token)

    assert response.status_code == 422
    assert [field["field"] for field in response.json()["details"]["fields"]] == ["token"]
