"""Sign-up: what it stores, what it tells, and to whom."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import text

from src.core.hash_pool import HashKind
from src.core.passwords import verify_password
from src.db import AsyncDatabaseManager
from src.db.models import UserModel
from src.db.repositories import UserRepository
from tests.support.databases import recorded_statements
from tests.support.hashing import count_hashes, hold, wait_until
from tests.support.service import MANY_EMAILS, MailingService, Service, Starter, StartMailingService, StartService
from tests.support.steps import (
    PASSWORD,
    activate,
    create_account,
    create_admin,
    post_sign_up,
    refusal,
    resend,
    sign_up,
    token_of,
)

Result = TypeVar("Result")
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


async def stored_user(database: AsyncDatabaseManager, user_id: str) -> UserModel:
    async with database.session() as session:
        return await UserRepository(session).get_by_id(UUID(user_id))


async def test_a_sign_up_waits_for_its_link(service: Service, database: AsyncDatabaseManager) -> None:
    answer = await sign_up(service)

    assert answer.keys() == {"user_id", "activation_required", "activation_url"}
    assert answer["activation_required"] is True
    assert answer["activation_url"].startswith("http://localhost:8000/activate?token=")
    user = await stored_user(database, answer["user_id"])
    assert not user.is_active
    assert user.activated_at is None


async def test_the_row_of_a_sign_up_is_null_in_the_database(service: Service, database: AsyncDatabaseManager) -> None:
    await sign_up(service)

    async with database.session() as session:
        assert (await session.scalars(text("SELECT count(*) FROM users WHERE activated_at IS NULL"))).one() == 1


async def test_the_password_is_stored_as_a_hash_and_the_token_too(
    service: Service, database: AsyncDatabaseManager
) -> None:
    answer = await sign_up(service)

    user = await stored_user(database, answer["user_id"])
    assert user.hashed_password.startswith("$bcrypt-sha256$v=2,t=2b,r=4$")
    assert verify_password(PASSWORD, user.hashed_password, rounds=4)
    async with database.session() as session:
        tokens = (await session.scalars(text("SELECT token_hash FROM user_tokens"))).all()
    assert tokens != [token_of(answer["activation_url"])]
    assert [len(token_hash) for token_hash in tokens] == [64]


async def test_the_address_is_stored_in_one_spelling(service: Service, database: AsyncDatabaseManager) -> None:
    answer = await sign_up(service, "Ana@BÜCHER.example.com")

    assert (await stored_user(database, answer["user_id"])).email == "ana@xn--bcher-kva.example.com"


async def test_the_name_may_be_left_out(service: Service, database: AsyncDatabaseManager) -> None:
    assert (await stored_user(database, (await sign_up(service))["user_id"])).name is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Zoë 李 🙂", "O'Brien", "ن" * 200, "👩‍👩‍👧"])
async def test_a_name_may_be_written_in_any_script(service: Service, name: str) -> None:
    user_id = (await sign_up(service, name=name))["user_id"]

    assert (await service.client.get(f"/api/users/{user_id}")).json()["name"] == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("A\x00na", "must not contain control characters"),
        ("A\x1b[31mna", "must not contain control characters"),
        ("A\u0085na", "must not contain control characters"),
        *((f"A{control}na", "must not contain characters that change the direction of text") for control in BIDI),
        ("A\u2028na", "must not contain line or paragraph separators"),
        ("A\u2029na", "must not contain line or paragraph separators"),
        ("Win at https://evil.example.com", "must not contain a web address"),
        ("A\ud800na", "contains characters that UTF-8 cannot encode"),
        ("   ", "must have at least 1 characters"),
        ("a" * 201, "must have at most 200 characters"),
        (7, "must be a string"),
    ],
)
async def test_a_name_that_cannot_be_stored_or_shown_is_a_422(service: Service, name: object, reason: str) -> None:
    body = json.dumps({"email": "ana@example.com", "password": PASSWORD, "name": name})

    response = await service.client.post("/auth/signup", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 422
    assert response.json()["details"] == {"fields": [{"field": "name", "reason": reason}]}


@pytest.mark.parametrize("password", ["🔑" * 64, "p" * 200, "nul \x00 and the rest", "trailing space "])
async def test_every_character_of_a_password_counts(
    service: Service, database: AsyncDatabaseManager, password: str
) -> None:
    answer = await sign_up(service, password=password)

    hashed = (await stored_user(database, answer["user_id"])).hashed_password
    assert verify_password(password, hashed, rounds=4)
    for other in (password[:-1], password + "x", password[:-1] + "x"):
        assert not verify_password(other, hashed, rounds=4)


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("short", "must have at least 12 characters"),
        ("administrator", "is one of the passwords that attackers try first"),
        ("AdminISTRATOR", "is one of the passwords that attackers try first"),
        ("ana.long.name@example.com", "must not be the e-mail address"),
        ("Ana.Long.Name", "must not be the e-mail address"),
    ],
)
async def test_a_weak_password_is_a_422_that_says_why(service: Service, password: str, reason: str) -> None:
    response = await post_sign_up(service, "ana.long.name@example.com", password=password)

    assert response.status_code == 422
    assert response.json()["details"] == {"fields": [{"field": "password", "reason": reason}]}


@pytest.mark.parametrize("email", ["", "ana", "ana@", "@example.com", "ana@exa mple.com", "a\x00@example.com", None])
async def test_what_is_no_address_is_a_422(service: Service, email: object) -> None:
    response = await service.client.post("/auth/signup", json={"email": email, "password": PASSWORD})

    assert response.status_code == 422
    assert [field["field"] for field in response.json()["details"]["fields"]] == ["email"]


async def test_a_misspelt_field_is_an_error_and_not_lost(service: Service) -> None:
    response = await post_sign_up(service, nmae="Ana")

    assert response.status_code == 422
    assert response.json()["details"] == {"fields": [{"field": "nmae", "reason": "is not a known field"}]}


@pytest.mark.slow
async def test_sixty_four_people_sign_up_at_once(service: Service, database: AsyncDatabaseManager) -> None:
    responses = await asyncio.gather(*(post_sign_up(service, f"u{number}@example.com") for number in range(64)))

    assert [response.status_code for response in responses] == [201] * 64
    async with database.session() as session:
        assert await UserRepository(session).count() == 64


async def test_ten_kilobytes_of_password_are_a_422_and_no_hash(service: Service) -> None:
    pool = count_hashes(service)

    response = await post_sign_up(service, password="p" * 10_000)

    assert response.status_code == 422
    assert response.json()["details"]["fields"] == [
        {"field": "password", "reason": "must have at most 1024 characters"}
    ]
    assert pool.count == 0


class TestWhenTheLinkIsMailed:
    async def test_the_answer_has_no_link_and_the_email_has(self, mailing_service: MailingService) -> None:
        answer = await sign_up(mailing_service)

        assert answer["activation_required"] is True
        assert answer["activation_url"] is None
        [email] = mailing_service.mailbox.messages
        assert email.to == "ana@example.com"
        assert "127.0.0.1" in email.text
        assert (await activate(mailing_service, mailing_service.mailbox.token())).status_code == 200

    async def test_no_word_of_whoever_signed_up_is_in_the_email(self, mailing_service: MailingService) -> None:
        await sign_up(mailing_service, name="Win a prize at evil.example.com")

        [email] = mailing_service.mailbox.messages
        assert "prize" not in email.subject + email.text + email.html

    async def test_a_template_of_a_deployment_that_shows_a_name_goes_on_rendering(
        self, start_mailing_service: StartMailingService, tmp_path: Path
    ) -> None:
        template = tmp_path / "en" / "activation.jinja"
        template.parent.mkdir()
        template.write_text(
            "{% extends layout %}{% block subject %}Hi{% endblock %}"
            '{% block body %}{{ p("Hello " ~ (name or "you")) }}{{ button("Go", url) }}{% endblock %}'
        )
        service = await start_mailing_service(email_templates_dir=tmp_path)

        await sign_up(service, name="Mallory")

        [email] = service.mailbox.messages
        assert email.text.startswith("Hello you\n")

    async def test_a_known_address_gets_the_same_answer_and_its_owner_a_notice(
        self, mailing_service: MailingService
    ) -> None:
        await create_account(mailing_service)
        unknown = await post_sign_up(mailing_service, "bob@example.com")

        known = await post_sign_up(mailing_service)

        assert known.status_code == unknown.status_code == 201
        assert known.headers.keys() == unknown.headers.keys()
        assert known.json() | {"user_id": ""} == unknown.json() | {"user_id": ""}
        email = mailing_service.mailbox.messages[-1]
        assert (email.to, email.subject) == ("ana@example.com", "You already have an account")
        assert "token" not in email.text

    async def test_a_known_address_costs_the_same_work(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)
        pool = count_hashes(mailing_service)
        with recorded_statements(mailing_service.database) as of_unknown:
            await sign_up(mailing_service, "bob@example.com")
        hashes_of_unknown = pool.count

        with recorded_statements(mailing_service.database) as of_known:
            await sign_up(mailing_service)

        assert of_known == of_unknown
        assert pool.count - hashes_of_unknown == hashes_of_unknown == 1

    async def test_the_new_row_is_readable_either_way(self, mailing_service: MailingService) -> None:
        await create_account(mailing_service)

        profiles = []
        for email in ("ana@example.com", "bob@example.com"):
            user_id = (await sign_up(mailing_service, email, name="Mallory"))["user_id"]
            profiles.append((await mailing_service.client.get(f"/api/users/{user_id}")).json())

        assert [profile["name"] for profile in profiles] == ["Mallory", "Mallory"]
        assert [profile["is_active"] for profile in profiles] == [False, False]

    async def test_an_email_that_cannot_be_sent_does_not_fail_the_sign_up_and_is_not_logged(
        self, mailing_service: MailingService, caplog: pytest.LogCaptureFixture
    ) -> None:
        mailing_service.mailbox.failure = OSError("the server says token=canary")

        assert (await post_sign_up(mailing_service)).status_code == 201

        assert "(activation) failed, attempt 1: OSError" in caplog.text
        assert "token=" not in caplog.text

    async def test_the_explicit_flag_puts_the_link_into_the_answer_instead(
        self, start_mailing_service: StartMailingService
    ) -> None:
        service = await start_mailing_service(auth_return_token_in_response=True)

        answer = await sign_up(service)

        assert service.mailbox.messages == []
        assert (await activate(service, token_of(answer["activation_url"]))).status_code == 200


class TestWhenTheAnswerHoldsTheLink:
    @pytest.mark.parametrize("is_mailing", [False, True])
    async def test_a_taken_address_is_a_409(self, starter: Starter, *, is_mailing: bool) -> None:
        service = await (starter.start_mailing(auth_return_token_in_response=True) if is_mailing else starter.start())
        assert (await activate(service, token_of((await sign_up(service))["activation_url"]))).status_code == 200

        response = await post_sign_up(service, "ANA@example.com")

        assert response.status_code == 409
        assert response.json()["code"] == "USER_EMAIL_TAKEN"

    async def test_a_waiting_address_may_be_signed_up_again(self, service: Service) -> None:
        await sign_up(service)

        assert (await post_sign_up(service)).status_code == 201

    async def test_the_link_follows_the_template(self, start_service: StartService) -> None:
        template = "https://app.example.com/#/welcome/{token}"
        service = await start_service(auth_activation_url_template=template)

        assert (await sign_up(service))["activation_url"].startswith("https://app.example.com/#/welcome/")

    async def test_the_link_is_never_built_from_the_request(self, service: Service) -> None:
        response = await service.client.post(
            "/auth/signup",
            json={"email": "ana@example.com", "password": PASSWORD},
            headers={"Host": "evil.example.com", "X-Forwarded-Host": "evil.example.com"},
        )

        assert response.json()["activation_url"].startswith("http://localhost:8000/")


class TestAutoActivation:
    async def test_the_account_is_active_at_once(self, start_service: StartService) -> None:
        service = await start_service(auth_auto_activate=True)

        answer = await sign_up(service)

        assert answer["activation_required"] is False
        assert answer["activation_url"] is None
        assert (await service.client.get(f"/api/users/{answer['user_id']}")).json()["is_active"] is True

    async def test_a_taken_address_is_a_409_even_where_emails_are_sent(
        self, start_mailing_service: StartMailingService
    ) -> None:
        service = await start_mailing_service(auth_auto_activate=True)
        await sign_up(service)

        response = await post_sign_up(service)

        assert response.status_code == 409
        assert response.json()["code"] == "USER_EMAIL_TAKEN"

    async def test_it_ends_the_sign_ups_that_waited(self, start_service: StartService) -> None:
        waiting = await sign_up(await start_service())
        service = await start_service(auth_auto_activate=True)

        await sign_up(service)

        assert (await service.client.get(f"/api/users/{waiting['user_id']}")).status_code == 404

    async def test_of_twenty_at_once_one_owns_the_address(self, start_service: StartService) -> None:
        service = await start_service(auth_auto_activate=True, **MANY_EMAILS)

        responses = await asyncio.gather(*(post_sign_up(service) for _ in range(20)))

        assert sorted(response.status_code for response in responses) == [201] + [409] * 19


class TestFullQueue:
    async def test_the_refusal_is_a_503_with_retry_after_and_costs_no_hash(self, start_service: StartService) -> None:
        service = await start_service()
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pool = count_hashes(service)
        holding = await hold(pool, gate, jobs=2 + 128, kind=HashKind.SIGN_UP)

        response = await post_sign_up(service)

        assert response.status_code == 503
        assert response.json()["code"] == "SERVICE_UNAVAILABLE"
        assert int(response.headers["Retry-After"]) > 0
        gate.set_result(None)
        await asyncio.gather(*holding)

    async def test_a_sign_up_whose_client_has_gone_is_dropped(
        self, service: Service, database: AsyncDatabaseManager
    ) -> None:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pool = count_hashes(service)
        holding = await hold(pool, gate, jobs=2)
        body = json.dumps({"email": "ana@example.com", "password": PASSWORD}).encode()
        events: Iterator[dict[str, Any]] = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])

        async def receive() -> dict[str, Any]:
            return next(events)

        async def send(_message: object) -> None: ...

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/auth/signup", "query_string": b"", "headers": headers}
        request = asyncio.ensure_future(service.app(scope, receive, send))
        await wait_until(lambda: pool.waiting == 1)

        gate.set_result(None)
        await asyncio.gather(request, *holding)

        async with database.session() as session:
            assert await UserRepository(session).count() == 0


class TestByInvitationAlone:
    @pytest.fixture
    async def closed(self, start_mailing_service: StartMailingService) -> MailingService:
        return await start_mailing_service(auth_sign_up="invitation")

    async def test_every_address_gets_the_same_403_before_any_work(
        self, service: Service, closed: MailingService
    ) -> None:
        await create_account(service)
        pool = count_hashes(closed)

        with recorded_statements(closed.database) as statements:
            refusals = [await post_sign_up(closed, email) for email in ("ana@example.com", "new@example.com")]

        assert [refusal(each) for each in refusals] == [(403, "SIGN_UP_CLOSED", [])] * 2
        assert refusals[0].content == refusals[1].content
        assert (pool.count, statements, closed.mailbox.messages) == (0, [], [])

    async def test_a_sign_up_that_waits_can_still_be_confirmed(self, service: Service, closed: MailingService) -> None:
        answer = await sign_up(service)

        response = await activate(closed, token_of(answer["activation_url"]))

        assert response.status_code == 200

    async def test_a_sign_up_that_waits_gets_its_link_again(self, service: Service, closed: MailingService) -> None:
        await sign_up(service)

        assert (await resend(closed)).status_code == 202
        assert (await activate(closed, closed.mailbox.token())).status_code == 200

    async def test_invitations_go_on(self, closed: MailingService) -> None:
        admin = await create_admin(closed)

        invited = await closed.client.post("/api/users", json={"email": "new@example.com"}, headers=admin.bearer)
        body = {"token": closed.mailbox.token(), "password": PASSWORD}
        accepted = await closed.client.post("/auth/invitation/accept", json=body)

        assert (invited.status_code, accepted.status_code) == (201, 200)
