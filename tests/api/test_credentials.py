"""Change a password, recover it, move to another address, leave."""

import asyncio
from collections import Counter

import pytest
from httpx import Response
from sqlalchemy import text

from src.core.passwords import verify_password
from src.db import AsyncDatabaseManager
from src.db.models import UserModel
from src.db.repositories import OutboxRepository, UserRepository
from tests.support.databases import rows_about_people
from tests.support.factories import expire_links
from tests.support.hashing import count_hashes, hold, start_waiting
from tests.support.second_factor import post_set_up, reauthenticate
from tests.support.service import MANY_EMAILS, MailingService, Service, StartMailingService, StartService
from tests.support.steps import (
    NEW_PASSWORD,
    PASSWORD,
    activate,
    change_password,
    confirm_move,
    create_account,
    leave,
    log_in,
    me,
    move,
    post_log_in,
    post_sign_up,
    refresh,
    request_move,
    request_reset,
    reset,
    revert_move,
    sign_up,
    token_of,
)


@pytest.fixture
async def telling_service(start_service: StartService) -> Service:
    """A service that by explicit setting tells the links."""
    return await start_service(auth_return_token_in_response=True)


def assert_refused(response: Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.json()["code"] == code


def assert_weak(response: Response) -> None:
    assert_refused(response, 422, "VALIDATION_ERROR")
    assert [field["field"] for field in response.json()["details"]["fields"]] == ["new_password"]


class TestPasswordChange:
    async def test_the_new_password_works_and_the_old_one_no_longer(self, service: Service) -> None:
        await create_account(service)
        who = await log_in(service)

        assert (await change_password(service, who)).status_code == 204

        assert (await post_log_in(service, password=NEW_PASSWORD)).status_code == 200
        assert_refused(await post_log_in(service), 401, "INVALID_CREDENTIALS")

    async def test_the_other_sessions_end_and_this_one_goes_on(self, service: Service) -> None:
        await create_account(service)
        who, other = await log_in(service), await log_in(service)

        await change_password(service, who)

        assert (await me(service, who)).status_code == 200
        assert (await refresh(service, who.refresh_token)).status_code == 200
        assert (await me(service, other)).status_code == 401
        assert (await refresh(service, other.refresh_token)).status_code == 401

    async def test_every_link_that_was_mailed_ends(self, telling_service: Service) -> None:
        await create_account(telling_service)
        who = await log_in(telling_service)
        of_reset = token_of((await request_reset(telling_service)).json()["reset_url"])
        of_move = token_of((await request_move(telling_service, who)).json()["email_change_url"])

        await change_password(telling_service, who)

        assert_refused(await reset(telling_service, of_reset), 400, "INVALID_TOKEN")
        assert_refused(await confirm_move(telling_service, of_move), 400, "INVALID_TOKEN")

    async def test_a_wrong_password_is_a_403_since_the_token_is_good(self, service: Service) -> None:
        await create_account(service)
        who = await log_in(service)

        assert_refused(await change_password(service, who, current="not-the-password"), 403, "WRONG_PASSWORD")

        assert (await post_log_in(service)).status_code == 200

    @pytest.mark.parametrize("new", ["short", "administrator", "ana@example.com"])
    async def test_a_weak_password_is_a_422_before_any_hash(self, service: Service, new: str) -> None:
        await create_account(service)
        who = await log_in(service)
        pool = count_hashes(service)

        assert_weak(await change_password(service, who, new=new))

        assert pool.count == 0

    async def test_of_two_changes_at_once_one_wins_and_its_password_works(self, service: Service) -> None:
        await create_account(service)
        one, other = await log_in(service), await log_in(service)

        responses = await asyncio.gather(
            change_password(service, one, new="the-password-of-one"),
            change_password(service, other, new="the-password-of-other"),
        )

        assert sorted(response.status_code for response in responses) in ([204, 401], [204, 403])
        winner = "one" if responses[0].status_code == 204 else "other"
        assert (await post_log_in(service, password=f"the-password-of-{winner}")).status_code == 200

    async def test_a_session_that_ends_while_the_password_is_hashed_changes_nothing(
        self, start_service: StartService
    ) -> None:
        service, other = await start_service(), await start_service()
        await create_account(other)
        who = await log_in(other)
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pool = count_hashes(service)
        holding = await hold(pool, gate, jobs=2)
        changing = await start_waiting(pool, change_password(service, who))

        await other.client.post("/auth/logout", headers=who.bearer)
        gate.set_result(None)

        assert_refused(await changing, 401, "INVALID_ACCESS_TOKEN")
        assert (await post_log_in(other)).status_code == 200
        await asyncio.gather(*holding)


class TestPasswordReset:
    async def test_every_address_gets_the_same_answer(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        await sign_up(mailing_service, "pending@example.com")

        emails = ("ana@example.com", "pending@example.com", "ghost@example.com")
        responses = [await request_reset(mailing_service, email) for email in emails]

        assert {response.status_code for response in responses} == {202}
        assert len({response.text for response in responses}) == 1
        assert len({tuple(response.headers) for response in responses}) == 1
        assert responses[0].json()["reset_url"] is None

    async def test_the_link_in_the_email_sets_the_password(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        await request_reset(mailing_service, "ANA@example.com")
        email = mailing_service.mailbox.messages[-1]
        assert (email.to, email.subject) == ("ana@example.com", "Reset your password")
        assert "http://localhost:8000/password-reset?token=" in email.text

        assert (await reset(mailing_service, mailing_service.mailbox.token())).status_code == 204

        assert (await post_log_in(mailing_service, password=NEW_PASSWORD)).status_code == 200

    async def test_only_an_owner_is_written_to(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        await create_account(mailing_service, "disabled@example.com")
        async with database.session() as session:
            await session.execute(text("UPDATE users SET is_active = false"))
            await session.commit()
        await sign_up(mailing_service, "pending@example.com")
        mailing_service.mailbox.messages.clear()

        for email in ("disabled@example.com", "pending@example.com", "ghost@example.com"):
            await request_reset(mailing_service, email)

        assert mailing_service.mailbox.messages == []

    async def test_all_sessions_and_all_other_links_end_and_none_begins(
        self, telling_service: Service, database: AsyncDatabaseManager
    ) -> None:
        await create_account(telling_service)
        who = await log_in(telling_service)
        older = token_of((await request_reset(telling_service)).json()["reset_url"])
        of_move = token_of((await request_move(telling_service, who)).json()["email_change_url"])
        newer = token_of((await request_reset(telling_service)).json()["reset_url"])

        response = await reset(telling_service, older)

        assert response.status_code == 204
        assert response.content == b""
        assert (await me(telling_service, who)).status_code == 401
        assert (await refresh(telling_service, who.refresh_token)).status_code == 401
        assert_refused(await reset(telling_service, newer), 400, "INVALID_TOKEN")
        assert_refused(await confirm_move(telling_service, of_move), 400, "INVALID_TOKEN")
        async with database.session() as session:
            assert await session.scalar(text("SELECT count(*) FROM sessions WHERE revoked_at IS NULL")) == 0

    async def test_the_explicit_setting_tells_the_link_or_null(self, telling_service: Service) -> None:
        await create_account(telling_service)

        known, unknown = await request_reset(telling_service), await request_reset(telling_service, "ghost@example.com")

        assert known.json().keys() == unknown.json().keys() == {"detail", "reset_url"}
        assert known.json()["reset_url"].startswith("http://localhost:8000/password-reset?token=")
        assert unknown.json()["reset_url"] is None

    async def test_without_smtp_and_without_the_setting_no_link_is_made(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        await create_account(service)

        response = await request_reset(service)

        assert (response.status_code, response.json()["reset_url"]) == (202, None)
        async with database.session() as session:
            assert await session.scalar(text("SELECT count(*) FROM user_tokens")) == 0

    async def test_wrong_used_and_expired_look_the_same(
        self, telling_service: Service, database: AsyncDatabaseManager
    ) -> None:
        await create_account(telling_service)
        used = token_of((await request_reset(telling_service)).json()["reset_url"])
        await reset(telling_service, used)
        expired = token_of((await request_reset(telling_service)).json()["reset_url"])
        await expire_links(database)
        of_sign_up = token_of((await sign_up(telling_service, "bob@example.com"))["activation_url"])

        responses = [await reset(telling_service, token) for token in (used, expired, of_sign_up, "never-issued")]

        assert {response.status_code for response in responses} == {400}
        assert len({response.text for response in responses}) == 1

    async def test_a_weak_password_does_not_spend_the_link(self, telling_service: Service) -> None:
        await create_account(telling_service)
        token = token_of((await request_reset(telling_service)).json()["reset_url"])

        assert_weak(await reset(telling_service, token, new="short"))

        assert (await reset(telling_service, token)).status_code == 204

    async def test_no_link_revives_a_disabled_account(
        self, telling_service: Service, database: AsyncDatabaseManager
    ) -> None:
        await create_account(telling_service)
        token = token_of((await request_reset(telling_service)).json()["reset_url"])
        async with database.session() as session:
            await session.execute(text("UPDATE users SET is_active = false"))
            await session.commit()

        assert_refused(await reset(telling_service, token), 400, "INVALID_TOKEN")

    @pytest.mark.slow
    async def test_of_twenty_clicks_at_once_one_sets_the_password(self, telling_service: Service) -> None:
        await create_account(telling_service)
        token = token_of((await request_reset(telling_service)).json()["reset_url"])
        passwords = [f"password-number-{number}" for number in range(20)]

        responses = await asyncio.gather(*(reset(telling_service, token, new) for new in passwords))

        assert Counter(response.status_code for response in responses) == {204: 1, 400: 19}
        winner = next(new for new, each in zip(passwords, responses, strict=True) if each.status_code == 204)
        assert (await post_log_in(telling_service, password=winner)).status_code == 200


class TestEmailChange:
    async def test_the_account_moves_when_the_link_is_followed_and_not_before(
        self, mailing_service: MailingService
    ) -> None:
        await create_account(mailing_service)
        who = await log_in(mailing_service)

        response = await request_move(mailing_service, who, "New@Example.com")

        assert (response.status_code, response.json()["email_change_url"]) == (202, None)
        email = mailing_service.mailbox.messages[-1]
        assert email.to == "new@example.com"
        assert "http://localhost:8000/email-change?token=" in email.text
        assert (await me(mailing_service, who)).json()["email"] == "ana@example.com"
        assert (await confirm_move(mailing_service, mailing_service.mailbox.token())).status_code == 204
        assert (await me(mailing_service, who)).json()["email"] == "new@example.com"
        assert (await post_log_in(mailing_service, "new@example.com")).status_code == 200
        assert_refused(await post_log_in(mailing_service), 401, "INVALID_CREDENTIALS")

    async def test_the_session_that_asked_goes_on_and_the_others_end(self, telling_service: Service) -> None:
        await create_account(telling_service)
        who, other = await log_in(telling_service), await log_in(telling_service)
        token = token_of((await request_move(telling_service, who)).json()["email_change_url"])

        await confirm_move(telling_service, token)

        assert (await me(telling_service, who)).status_code == 200
        assert (await me(telling_service, other)).status_code == 401

    async def test_all_other_links_end(self, telling_service: Service) -> None:
        await create_account(telling_service)
        who = await log_in(telling_service)
        of_reset = token_of((await request_reset(telling_service)).json()["reset_url"])
        elsewhere = token_of((await request_move(telling_service, who, "x@example.com")).json()["email_change_url"])
        token = token_of((await request_move(telling_service, who)).json()["email_change_url"])

        await confirm_move(telling_service, token)

        assert_refused(await reset(telling_service, of_reset), 400, "INVALID_TOKEN")
        assert_refused(await confirm_move(telling_service, elsewhere), 400, "INVALID_TOKEN")
        assert_refused(await confirm_move(telling_service, token), 400, "INVALID_TOKEN")

    async def test_a_taken_address_is_told_to_its_owner_alone(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        await create_account(mailing_service, "bob@example.com")
        who = await log_in(mailing_service)
        free = await request_move(mailing_service, who)

        taken = await request_move(mailing_service, who, "bob@example.com")

        assert (taken.status_code, taken.text) == (free.status_code, free.text)
        email = mailing_service.mailbox.messages[-1]
        assert (email.to, email.subject) == ("bob@example.com", "You already have an account")
        assert "token" not in email.text

    async def test_even_by_the_explicit_setting_a_taken_address_gets_no_link(self, telling_service: Service) -> None:
        await create_account(telling_service)
        await create_account(telling_service, "bob@example.com")
        who = await log_in(telling_service)

        response = await request_move(telling_service, who, "bob@example.com")

        assert (response.status_code, response.json()["email_change_url"]) == (202, None)

    async def test_an_address_that_is_taken_meanwhile_is_an_invalid_link(self, telling_service: Service) -> None:
        await create_account(telling_service)
        who = await log_in(telling_service)
        token = token_of((await request_move(telling_service, who)).json()["email_change_url"])
        await create_account(telling_service, "new@example.com")

        assert_refused(await confirm_move(telling_service, token), 400, "INVALID_TOKEN")

        assert (await me(telling_service, who)).json()["email"] == "ana@example.com"

    async def test_sign_ups_that_wait_for_the_address_end(self, telling_service: Service) -> None:
        await create_account(telling_service)
        who = await log_in(telling_service)
        waiting = await sign_up(telling_service, "new@example.com")
        token = token_of((await request_move(telling_service, who)).json()["email_change_url"])

        await confirm_move(telling_service, token)

        assert_refused(await activate(telling_service, token_of(waiting["activation_url"])), 400, "INVALID_TOKEN")
        assert (await telling_service.client.get(f"/api/users/{waiting['user_id']}")).status_code == 404

    @pytest.mark.slow
    async def test_a_race_for_one_address_has_one_winner_and_no_error(
        self, telling_service: Service, database: AsyncDatabaseManager
    ) -> None:
        moves, activations = [], []
        for number in range(5):
            email = f"u{number}@example.com"
            await create_account(telling_service, email)
            who = await log_in(telling_service, email)
            moves.append(token_of((await request_move(telling_service, who)).json()["email_change_url"]))
            activations.append(token_of((await sign_up(telling_service, "new@example.com"))["activation_url"]))

        responses = await asyncio.gather(
            *(confirm_move(telling_service, token) for token in moves),
            *(activate(telling_service, token) for token in activations),
        )

        statuses = Counter(response.status_code for response in responses)
        assert statuses[400] == 9
        assert statuses[200] + statuses[204] == 1
        async with database.session() as session:
            assert await UserRepository(session).find_owner("new@example.com") is not None

    async def test_ones_own_address_is_a_422(self, service: Service) -> None:
        await create_account(service)
        who = await log_in(service)

        response = await request_move(service, who, "ANA@example.com")

        assert_refused(response, 422, "VALIDATION_ERROR")
        assert response.json()["details"]["fields"][0]["field"] == "new_email"

    async def test_a_wrong_password_is_a_403(self, service: Service) -> None:
        await create_account(service)
        who = await log_in(service)

        assert_refused(await request_move(service, who, current="not-the-password"), 403, "WRONG_PASSWORD")


class TestUndoingAnEmailChange:
    """A thief who knows the password moves the account away, twice, and tries to keep it."""

    async def test_the_owners_link_survives_what_the_thief_can_do(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        thief = await log_in(mailing_service)
        of_owner = await move(mailing_service, thief, "thief@example.com")
        of_thief = await move(mailing_service, thief, "second@example.com")
        await change_password(mailing_service, thief)
        assert (await revert_move(mailing_service, of_thief)).status_code == 204

        assert (await revert_move(mailing_service, of_owner)).status_code == 204

        assert (await me(mailing_service, thief)).status_code == 401
        assert (await post_log_in(mailing_service, password=NEW_PASSWORD)).status_code == 200

    async def test_the_thiefs_link_ends_with_the_owners(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        thief = await log_in(mailing_service)
        of_owner = await move(mailing_service, thief, "thief@example.com")
        of_thief = await move(mailing_service, thief, "second@example.com")

        assert (await revert_move(mailing_service, of_owner)).status_code == 204

        assert_refused(await revert_move(mailing_service, of_thief), 400, "INVALID_TOKEN")
        assert_refused(await revert_move(mailing_service, of_owner), 400, "INVALID_TOKEN")

    async def test_a_notice_that_waits_brings_the_thief_no_link_any_more(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        thief = await log_in(mailing_service)
        of_owner = await move(mailing_service, thief, "thief@example.com")
        await request_move(mailing_service, thief, "second@example.com")
        second = mailing_service.mailbox.token()
        mailing_service.mailbox.failure = OSError()
        await confirm_move(mailing_service, second)

        assert (await revert_move(mailing_service, of_owner)).status_code == 204

        async with mailing_service.database.session() as session:
            assert not await OutboxRepository(session).exists({"kind": "email_changed", "status": "queued"})


@pytest.mark.slow
async def test_sign_ups_for_an_address_whose_owner_leaves_at_that_moment_all_work(
    start_mailing_service: StartMailingService,
) -> None:
    mailing_service = await start_mailing_service(**MANY_EMAILS)
    for _ in range(5):
        await create_account(mailing_service)
        who = await log_in(mailing_service)

        responses = await asyncio.gather(
            leave(mailing_service, who), *(post_sign_up(mailing_service) for _ in range(6))
        )

        assert Counter(response.status_code for response in responses) == {204: 1, 201: 6}
        async with mailing_service.database.session() as session:
            await session.execute(text("DELETE FROM users"))
            await session.execute(text("DELETE FROM outbox_emails"))
            await session.commit()


class TestDeleteAccount:
    async def test_everything_about_the_person_is_gone_from_every_table(
        self, mailing_service: MailingService, database: AsyncDatabaseManager
    ) -> None:
        user_id = await create_account(mailing_service, name="Ana the Unique")
        who = await log_in(mailing_service)
        await request_reset(mailing_service)
        await request_move(mailing_service, who)
        await sign_up(mailing_service)  # somebody tries the address again: that row holds the address too

        assert (await leave(mailing_service, who)).status_code == 204

        assert await rows_about_people(database) == []
        assert (await mailing_service.client.get(f"/api/users/{user_id}")).status_code == 404
        assert (await me(mailing_service, who)).status_code == 401
        assert (await refresh(mailing_service, who.refresh_token)).status_code == 401
        assert_refused(await post_log_in(mailing_service), 401, "INVALID_CREDENTIALS")

    async def test_the_address_is_free_again(self, service: Service) -> None:
        first = await create_account(service)
        await leave(service, await log_in(service))

        assert await create_account(service) != first

    async def test_others_are_left_alone(self, service: Service) -> None:
        await create_account(service)
        await create_account(service, "bob@example.com")
        bob = await log_in(service, "bob@example.com")

        await leave(service, await log_in(service))

        assert (await me(service, bob)).status_code == 200

    async def test_a_wrong_password_deletes_nothing(self, service: Service) -> None:
        await create_account(service)
        who = await log_in(service)

        assert_refused(await leave(service, who, current="not-the-password"), 403, "WRONG_PASSWORD")

        assert (await me(service, who)).status_code == 200

    @pytest.mark.slow
    async def test_leaving_twice_at_once_works_once(self, service: Service) -> None:
        await create_account(service)
        who = await log_in(service)

        responses = await asyncio.gather(*(leave(service, who) for _ in range(5)))

        statuses = Counter(response.status_code for response in responses)
        assert statuses[204] == 1
        assert statuses.keys() <= {204, 401, 403}


async def test_a_password_changed_in_another_session_ends_what_was_hashing(
    start_service: StartService, database: AsyncDatabaseManager
) -> None:
    service, other = await start_service(), await start_service()
    await create_account(other)
    who, owner = await log_in(other), await log_in(other)
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    pool = count_hashes(service)
    holding = await hold(pool, gate, jobs=2)
    waiting = [
        await start_waiting(pool, change_password(service, who, new="of-the-thief-12-chars")),
        await start_waiting(pool, request_move(service, who)),
        await start_waiting(pool, leave(service, who)),
        await start_waiting(pool, post_set_up(service, who)),
        await start_waiting(pool, reauthenticate(service, who, password=PASSWORD)),
    ]

    await change_password(other, owner)
    gate.set_result(None)

    for response in await asyncio.gather(*waiting):
        assert_refused(response, 401, "INVALID_ACCESS_TOKEN")
    async with database.session() as session:
        [user] = await UserRepository(session).list()
    assert isinstance(user, UserModel)
    assert verify_password(NEW_PASSWORD, user.hashed_password, rounds=4)
    await asyncio.gather(*holding)


async def test_a_taken_and_a_free_address_cost_the_mover_the_same_work(mailing_service: MailingService) -> None:
    await create_account(mailing_service)
    await create_account(mailing_service, "bob@example.com")
    who = await log_in(mailing_service)
    pool = count_hashes(mailing_service)

    for email in ("new@example.com", "bob@example.com"):
        before = pool.count
        await request_move(mailing_service, who, email)
        assert pool.count - before == 1


async def test_a_sign_up_cannot_be_logged_in_to_before_it_is_confirmed(service: Service) -> None:
    await post_sign_up(service)

    assert_refused(await post_log_in(service), 401, "INVALID_CREDENTIALS")
