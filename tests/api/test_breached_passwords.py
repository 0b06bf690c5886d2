"""New passwords are looked up among those that were found in breaches, where that is enabled."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from src.core.exceptions import ValidationException
from src.services.breached_passwords import LOOKUPS_AT_ONCE
from tests.support.hashing import wait_until
from tests.support.range_server import PADDING, RangeServer, http, run_range_server, sha1
from tests.support.service import Service, StartService, accounts_of
from tests.support.steps import (
    PASSWORD,
    change_password,
    create_account,
    create_admin,
    log_in,
    post_log_in,
    post_sign_up,
    refusal,
    request_reset,
    reset,
    token_of,
)

BREACHED = "correct-horse-battery"


@pytest_asyncio.fixture
async def ranges() -> AsyncIterator[RangeServer]:
    async with run_range_server() as ranges:
        ranges.breached[BREACHED] = 3
        yield ranges


@pytest_asyncio.fixture
async def checking_service(start_service: StartService, ranges: RangeServer) -> Service:
    return await start_service(auth_hibp_enabled=True, auth_hibp_url=ranges.url, auth_return_token_in_response=True)


class TestABreachedPassword:
    async def test_is_refused_at_sign_up_and_the_reason_is_said(self, checking_service: Service) -> None:
        response = await post_sign_up(checking_service, password=BREACHED)

        assert response.status_code == 422
        reason = "has been found in a data breach: choose another"
        assert response.json()["details"] == {"fields": [{"field": "password", "reason": reason}]}

    async def test_is_refused_at_a_change(self, checking_service: Service) -> None:
        await create_account(checking_service)
        who = await log_in(checking_service)

        response = await change_password(checking_service, who, new=BREACHED)

        assert refusal(response) == (422, "VALIDATION_ERROR", ["new_password"])

    async def test_is_refused_at_a_reset_and_does_not_consume_the_link(self, checking_service: Service) -> None:
        await create_account(checking_service)
        token = token_of((await request_reset(checking_service)).json()["reset_url"])

        response = await reset(checking_service, token, BREACHED)

        assert refusal(response) == (422, "VALIDATION_ERROR", ["new_password"])
        assert (await reset(checking_service, token)).status_code == 204

    async def test_is_refused_at_an_invitation(self, checking_service: Service) -> None:
        root = await create_admin(checking_service)
        body = {"email": "bob@example.com"}
        invitation = await checking_service.client.post("/api/users", json=body, headers=root.bearer)
        token = token_of(invitation.json()["invitation_url"])

        body = {"token": token, "password": BREACHED}
        response = await checking_service.client.post("/auth/invitation/accept", json=body)

        assert refusal(response) == (422, "VALIDATION_ERROR", ["password"])

    async def test_is_refused_on_the_command_line(self, checking_service: Service) -> None:
        async with accounts_of(checking_service) as accounts:
            with pytest.raises(ValidationException):
                await accounts.create_admin(email="admin@example.com", password=BREACHED)

    async def test_is_found_however_a_keyboard_composes_it(
        self, checking_service: Service, ranges: RangeServer
    ) -> None:
        ranges.breached["senha-\u00e9-de-verdade"] = 1

        assert (await post_sign_up(checking_service, password="senha-e\u0301-de-verdade")).status_code == 422

    async def test_still_logs_in(self, checking_service: Service, ranges: RangeServer) -> None:
        await create_account(checking_service)
        ranges.requests.clear()
        ranges.breached[PASSWORD] = 1

        assert (await post_log_in(checking_service)).status_code == 200
        assert ranges.requests == []


class TestTheQuestion:
    async def test_holds_five_digits_of_the_hash_and_asks_for_padding(
        self, checking_service: Service, ranges: RangeServer
    ) -> None:
        assert (await post_sign_up(checking_service)).status_code == 201

        [request] = ranges.requests
        assert request.startswith(f"GET /range/{sha1(PASSWORD)[:5]} HTTP/1.1\r\n")
        assert "\r\nadd-padding: true\r\n" in request.lower()
        assert sha1(PASSWORD)[5:] not in request.upper()
        assert PASSWORD not in request

    async def test_is_not_asked_of_a_password_that_is_refused_anyway(
        self, checking_service: Service, ranges: RangeServer
    ) -> None:
        assert (await post_sign_up(checking_service, password="short")).status_code == 422

        assert ranges.requests == []

    async def test_is_not_asked_unless_that_is_enabled(self, start_service: StartService, ranges: RangeServer) -> None:
        service = await start_service(auth_hibp_url=ranges.url)

        assert (await post_sign_up(service, password=BREACHED)).status_code == 201
        assert ranges.requests == []

    async def test_is_asked_while_no_connection_to_the_database_is_held(
        self, checking_service: Service, ranges: RangeServer
    ) -> None:
        await create_account(checking_service)
        who = await log_in(checking_service)
        ranges.gate.clear()

        changing = asyncio.create_task(change_password(checking_service, who))
        await wait_until(lambda: ranges.asking == 1)

        assert "Current Checked out connections: 0" in checking_service.database.engine.pool.status()
        ranges.gate.set()
        assert (await changing).status_code == 204

    @pytest.mark.slow
    async def test_is_asked_a_few_times_at_once_however_many_sign_up(
        self, checking_service: Service, ranges: RangeServer
    ) -> None:
        ranges.gate.clear()
        emails = [f"person{number}@example.com" for number in range(3 * LOOKUPS_AT_ONCE)]
        signing_up = [asyncio.create_task(post_sign_up(checking_service, email)) for email in emails]
        await wait_until(lambda: ranges.asking == LOOKUPS_AT_ONCE)

        ranges.gate.set()

        assert {(await each).status_code for each in signing_up} == {201}
        assert ranges.most_asking == LOOKUPS_AT_ONCE


class TestAnAnswer:
    async def test_of_padding_alone_refuses_nothing(self, checking_service: Service, ranges: RangeServer) -> None:
        ranges.breached[PASSWORD] = 0

        assert (await post_sign_up(checking_service)).status_code == 201

    @pytest.mark.parametrize(
        "answer",
        [
            http(500, f"{sha1(PASSWORD)[5:]}:3"),
            http(302, "", Location="http://127.0.0.1:1/"),
            http(200, ""),
            http(200, "<html>Log in to this network</html>"),
            http(200, f"{sha1(PASSWORD)[5:]}:many\r\n{PADDING}"),
            http(200, f"{sha1(PASSWORD)[5:]}:{'9' * 5000}\r\n{PADDING}"),
            b"\x00\xff no HTTP at all\r\n\r\n",
            b"",
        ],
        ids=["error", "redirect", "empty", "html", "no-count", "endless-count", "no-http", "nothing"],
    )
    async def test_that_is_none_refuses_nothing_and_is_logged_without_a_piece_of_the_password(
        self, checking_service: Service, ranges: RangeServer, caplog: pytest.LogCaptureFixture, answer: bytes
    ) -> None:
        ranges.answer = answer

        with caplog.at_level(logging.DEBUG):
            response = await post_sign_up(checking_service)

        assert response.status_code == 201
        assert_logged_without_the_password(caplog)

    @pytest.mark.slow
    @pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
    async def test_that_does_not_come_to_an_end_refuses_nothing(
        self, checking_service: Service, ranges: RangeServer, caplog: pytest.LogCaptureFixture, *, drips: bool
    ) -> None:
        ranges.gate.clear()
        ranges.drips, ranges.answer = drips, b""

        with caplog.at_level(logging.DEBUG):
            response = await asyncio.wait_for(post_sign_up(checking_service), timeout=10)

        assert response.status_code == 201
        assert_logged_without_the_password(caplog)

    async def test_of_nobody_refuses_nothing(
        self, start_service: StartService, caplog: pytest.LogCaptureFixture
    ) -> None:
        service = await start_service(auth_hibp_enabled=True, auth_hibp_url="http://127.0.0.1:1/range/")

        with caplog.at_level(logging.DEBUG):
            response = await post_sign_up(service)

        assert response.status_code == 201
        assert_logged_without_the_password(caplog)

    async def test_that_is_good_is_not_logged(
        self, checking_service: Service, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            await post_sign_up(checking_service, password=BREACHED)

        assert sha1(BREACHED)[:5] not in caplog.text


def assert_logged_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    [record] = [each for each in caplog.records if each.name == "src.services.breached_passwords"]
    assert record.levelno == logging.WARNING
    assert sha1(PASSWORD)[:5] not in caplog.text.upper()
    assert PASSWORD not in caplog.text


@pytest.mark.slow
def test_the_http_client_is_loaded_only_where_it_is_enabled() -> None:
    code = "import sys, src.api.app; sys.exit('httpx' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
