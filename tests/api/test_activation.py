"""Activation: a link makes one sign-up the owner of its address, once."""

import asyncio
from collections import Counter
from uuid import UUID

import pytest
from httpx import Response
from sqlalchemy import text, update

from src.core.passwords import verify_password
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import UserModel
from src.db.repositories import UserRepository
from tests.support.factories import expire_links
from tests.support.service import MailingService, Service
from tests.support.steps import activate, create_account, post_sign_up, resend, sign_up, token_of


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


async def test_a_strangers_later_sign_up_does_not_come_with_the_owners_link(
    mailing_service: MailingService, database: AsyncDatabaseManager
) -> None:
    owner = await sign_up(mailing_service, password="the-owners-own-password")
    owners_token = mailing_service.mailbox.token()
    stranger = await sign_up(mailing_service, password="the-strangers-password")

    await activate(mailing_service, owners_token)

    await assert_owned(database, owner["user_id"], "the-owners-own-password")
    assert (await mailing_service.client.get(f"/api/users/{stranger['user_id']}")).status_code == 404


async def test_a_strangers_earlier_sign_up_does_not_squat_the_address(
    mailing_service: MailingService, database: AsyncDatabaseManager
) -> None:
    stranger = await sign_up(mailing_service, password="the-strangers-password")
    strangers_token = mailing_service.mailbox.token()
    owner = await sign_up(mailing_service, password="the-owners-own-password")

    await activate(mailing_service, mailing_service.mailbox.token())

    await assert_owned(database, owner["user_id"], "the-owners-own-password")
    assert (await mailing_service.client.get(f"/api/users/{stranger['user_id']}")).status_code == 404
    assert (await activate(mailing_service, strangers_token)).json()["code"] == "INVALID_TOKEN"


async def assert_owned(database: AsyncDatabaseManager, user_id: str, password: str) -> None:
    async with database.session() as session:
        owner = await UserRepository(session).find_owner("ana@example.com")
    assert owner is not None
    assert str(owner.id) == user_id
    assert verify_password(password, owner.hashed_password, rounds=4)


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


async def test_fifty_clicks_on_one_link_at_once(service: Service) -> None:
    token = token_of((await sign_up(service))["activation_url"])

    responses = await asyncio.gather(*(activate(service, token) for _ in range(50)))

    assert outcomes(responses) == {(200, None): 1, (400, "INVALID_TOKEN"): 49}


async def test_twenty_sign_ups_of_one_address_activated_at_once(
    service: Service, database: AsyncDatabaseManager
) -> None:
    tokens = [token_of((await sign_up(service))["activation_url"]) for _ in range(20)]

    responses = await asyncio.gather(*(activate(service, token) for token in tokens))

    assert outcomes(responses) == {(200, None): 1, (400, "INVALID_TOKEN"): 19}
    async with database.session() as session:
        assert await UserRepository(session).count() == 1


async def test_activations_resends_and_sign_ups_of_one_address_at_once(
    mailing_service: MailingService, database: AsyncDatabaseManager
) -> None:
    for _ in range(10):
        await sign_up(mailing_service)
    tokens = [mailing_service.mailbox.token(index) for index in range(10)]

    responses = await asyncio.gather(
        *(activate(mailing_service, token) for token in tokens),
        *(post_sign_up(mailing_service) for _ in range(10)),
        *(resend(mailing_service) for _ in range(10)),
    )

    assert Counter(response.status_code for response in responses) == {200: 1, 400: 9, 201: 10, 202: 10}
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM users WHERE activated_at IS NOT NULL")) == 1


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

        emails = mailing_service.mailbox.messages
        assert sorted(name for email in emails for name in names if f"Name: {name}\n" in email.text) == [
            "four",
            "three",
            "two",
        ]
        for token in (mailing_service.mailbox.token(index) for index in range(3)):
            assert (await mailing_service.client.get("/activate", params={"token": token})).status_code == 200

    async def test_a_sign_up_whose_link_has_expired_gets_none(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        await sign_up(mailing_service)
        await expire_links(database)
        mailing_service.mailbox.messages.clear()

        await resend(mailing_service)

        assert mailing_service.mailbox.messages == []

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
