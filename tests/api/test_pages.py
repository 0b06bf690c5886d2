"""The page behind the activation link, as a browser without JavaScript uses it."""

import re

import pytest
from httpx import ASGITransport, AsyncClient, Response
from starlette.applications import Starlette
from starlette.routing import Mount

from src.db import AsyncDatabaseManager
from tests.support.factories import expire_links
from tests.support.service import MailingService, Service, StartService
from tests.support.steps import NEW_PASSWORD, activate, create_account, log_in, sign_up, token_of


async def open_link(service: Service, token: str, method: str = "GET") -> Response:
    return await service.client.request(method, "/activate", params={"token": token})


async def press_button(service: Service, token: str, **form: str) -> Response:
    return await service.client.post("/activate", data={"token": token} | form)


@pytest.fixture
async def token(service: Service) -> str:
    return token_of((await sign_up(service, name="Ana <b>"))["activation_url"])


async def test_the_page_shows_who_signed_up_and_a_button(service: Service, token: str) -> None:
    response = await open_link(service, token)

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "ana@example.com" in response.text
    assert "Ana &lt;b&gt;" in response.text
    assert "127.0.0.1" in response.text
    assert re.search(r"\d\d \w+ \d{4}, \d\d:\d\d UTC", response.text)
    assert f'<input type="hidden" name="token" value="{token}">' in response.text
    assert "password" not in response.text


async def test_opening_the_link_changes_nothing_however_often(service: Service, token: str) -> None:
    for method in ("GET", "HEAD") * 10:
        assert (await open_link(service, token, method)).status_code == 200

    assert (await press_button(service, token)).status_code == 200


async def test_head_has_the_headers_of_get_and_no_body(service: Service, token: str) -> None:
    get, head = await open_link(service, token), await open_link(service, token, "HEAD")

    assert head.headers.keys() == get.headers.keys()


async def test_the_button_activates_the_account(service: Service, token: str) -> None:
    response = await press_button(service, token)

    assert response.status_code == 200
    assert "Your account is active" in response.text
    assert (await activate(service, token)).json()["code"] == "INVALID_TOKEN"


async def test_pages_run_no_script_and_tell_nobody_their_address(service: Service, token: str) -> None:
    for response in (
        await open_link(service, token),
        await open_link(service, "wrong"),
        await press_button(service, token),
    ):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert "<script" not in response.text


@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?other=1", "?token=%00%F0%9F%92%A9"])
async def test_a_link_that_is_not_valid_says_so_on_a_page(service: Service, query: str) -> None:
    response = await service.client.get(f"/activate{query}")

    assert response.status_code == 400
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "This link is not valid" in response.text


async def test_a_form_without_its_token_is_refused_on_a_page(service: Service) -> None:
    response = await service.client.post("/activate", data={})

    assert response.status_code == 422
    assert "<h1>This did not work</h1>" in response.text


async def test_an_expired_link_opens_no_form(service: Service, database: AsyncDatabaseManager, token: str) -> None:
    await expire_links(database)

    assert (await open_link(service, token)).status_code == 400


class TestWhenSeveralSignUpsWait:
    @pytest.fixture
    async def tokens(self, service: Service) -> list[str]:
        passwords = ("the-strangers-password", "the-owners-own-password")
        return [token_of((await sign_up(service, password=each))["activation_url"]) for each in passwords]

    async def test_the_page_asks_for_a_new_password(self, service: Service, tokens: list[str]) -> None:
        response = await open_link(service, tokens[0])

        assert response.status_code == 200
        assert 'name="new_password" type="password" autocomplete="new-password"' in response.text
        assert "At least 12 characters" in response.text
        assert 'role="alert"' not in response.text

    async def test_the_new_password_becomes_that_of_the_account(self, service: Service, tokens: list[str]) -> None:
        response = await press_button(service, tokens[0], new_password=NEW_PASSWORD)

        assert response.status_code == 200
        assert "Your account is active" in response.text
        await log_in(service, password=NEW_PASSWORD)

    async def test_a_weak_password_is_shown_its_reason_and_leaves_the_link(
        self, service: Service, tokens: list[str]
    ) -> None:
        response = await press_button(service, tokens[0], new_password="short")

        assert response.status_code == 422
        assert "This password must have at least 12 characters." in response.text
        assert 'value="short"' not in response.text
        assert (await press_button(service, tokens[0], new_password=NEW_PASSWORD)).status_code == 200

    @pytest.mark.parametrize("form", [{}, {"new_password": ""}])
    async def test_a_page_that_was_opened_before_the_other_sign_up_asks_now(
        self, service: Service, tokens: list[str], form: dict[str, str]
    ) -> None:
        response = await press_button(service, tokens[0], **form)

        assert response.status_code == 409
        assert 'name="new_password" type="password"' in response.text
        assert 'role="alert"' not in response.text
        assert (await press_button(service, tokens[0], new_password=NEW_PASSWORD)).status_code == 200


async def test_a_sign_up_for_an_owned_address_cannot_be_confirmed_on_the_page(mailing_service: MailingService) -> None:
    await create_account(mailing_service)

    assert (await press_button(mailing_service, mailing_service.mailbox.token(0))).status_code == 400


async def test_the_form_finds_its_way_under_a_path_prefix(service: Service, token: str) -> None:
    prefixed = Starlette(routes=[Mount("/accounts", app=service.app)])
    async with AsyncClient(transport=ASGITransport(app=prefixed), base_url="http://test") as client:
        page = await client.get("/accounts/activate", params={"token": token})
        action = re.findall(r'action="([^"]+)"', page.text)[0]
        response = await client.post(page.url.join(action), data={"token": token})
        again = await client.post(page.url.join(action), data={"token": token})

    assert response.status_code == 200
    assert "If you have confirmed your address already, log in." in again.text


async def test_a_gateway_that_opens_the_link_for_a_person_may_post_from_elsewhere(service: Service, token: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://gateway.example"}
    response = await service.client.post("/activate", data={"token": token}, headers=headers)

    assert response.status_code == 200


async def test_an_empty_new_password_is_a_weak_one(start_service: StartService) -> None:
    service = await start_service(auth_return_token_in_response=True)
    await create_account(service)
    answer = await service.client.post("/auth/password-reset/request", json={"email": "ana@example.com"})
    form = {"token": token_of(answer.json()["reset_url"]), "new_password": ""}

    response = await service.client.post("/password-reset", data=form)

    assert response.status_code == 422
    assert "This password must have at least 12 characters." in response.text
    assert f'value="{form["token"]}"' in response.text
