"""The refresh token in a cookie: out of the reach of scripts, and of no use to other origins."""

from collections.abc import Awaitable, Callable, Mapping
from http.cookies import Morsel, SimpleCookie
from types import MappingProxyType

import pytest
from httpx import Response

from tests.support.hashing import count_hashes
from tests.support.service import Service, StartService
from tests.support.steps import PASSWORD, LoggedIn, create_account, log_in, me, post_log_in, read_tokens, refusal

COOKIE = "__Host-refresh"
HERE = "https://auth.example.com"
APP = "https://app.example.com"

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@pytest.fixture
async def service(start_service: StartService) -> Service:
    return await start_service(auth_refresh_cookie=True, server_public_url=HERE, cors_allowed_origins=APP)


async def post_cookie_log_in(service: Service, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    body = {"email": "ana@example.com", "password": PASSWORD, "use_cookie": True}
    return await service.client.post("/auth/login", json=body, headers=headers)


async def log_in_by_cookie(service: Service) -> str:
    """The refresh token that the cookie holds."""
    await create_account(service)
    return cookie_of(await post_cookie_log_in(service)).value


def cookie_of(response: Response) -> "Morsel[str]":
    assert response.is_success, response.text
    return SimpleCookie(response.headers["set-cookie"])[COOKIE]


async def post(service: Service, path: str, cookie: str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    return await service.client.post(path, headers={"Cookie": f"{COOKIE}={cookie}", **headers})


async def refresh(service: Service, cookie: str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    return await post(service, "/auth/refresh", cookie, headers)


async def log_out(service: Service, cookie: str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    return await post(service, "/auth/logout", cookie, headers)


def is_deleted(response: Response) -> bool:
    set_cookie = response.headers.get("set-cookie", "")
    return set_cookie.startswith(f'{COOKIE}=""; ') and "Max-Age=0" in set_cookie and "Secure" in set_cookie


async def is_live(service: Service, cookie: str) -> bool:
    return (await refresh(service, cookie)).status_code == 200


class TestLogIn:
    async def test_the_refresh_token_is_in_the_cookie_alone(self, service: Service) -> None:
        await create_account(service)

        response = await post_cookie_log_in(service)

        cookie, body = cookie_of(response), response.json()
        assert {name: value for name, value in cookie.items() if value} == {
            "path": "/",
            "max-age": str(body["refresh_expires_in"]),
            "secure": True,
            "httponly": True,
            "samesite": "strict",
        }
        assert body["refresh_token"] is None
        assert cookie.value not in response.text
        assert service.signer.read_refresh(cookie.value).generation == 1

    async def test_who_does_not_ask_for_a_cookie_gets_none(self, service: Service) -> None:
        await create_account(service)

        response = await post_log_in(service)

        assert read_tokens(response).refresh_token
        assert "set-cookie" not in response.headers

    async def test_a_wrong_password_sets_no_cookie(self, service: Service) -> None:
        response = await post_cookie_log_in(service)

        assert refusal(response) == (401, "INVALID_CREDENTIALS", [])
        assert "set-cookie" not in response.headers

    async def test_the_form_knows_no_cookie(self, service: Service) -> None:
        await create_account(service)
        form = {"grant_type": "password", "username": "ana@example.com", "password": PASSWORD, "use_cookie": "true"}

        response = await service.client.post("/auth/token", data=form)

        assert response.json()["refresh_token"]
        assert "set-cookie" not in response.headers


class TestWhereItIsOff:
    @pytest.fixture
    async def service(self, start_service: StartService) -> Service:
        return await start_service()

    async def test_asking_for_a_cookie_is_a_422_before_any_hash(self, service: Service) -> None:
        pool = count_hashes(service)

        response = await post_cookie_log_in(service)

        assert refusal(response) == (422, "VALIDATION_ERROR", ["use_cookie"])
        assert pool.count == 0

    async def test_no_cookie_is_read(self, service: Service) -> None:
        await create_account(service)
        token = (await log_in(service)).refresh_token

        refreshed, logged_out = await refresh(service, token), await log_out(service, token)

        assert refusal(refreshed) == (415, "UNSUPPORTED_MEDIA_TYPE", [])
        assert refusal(logged_out) == (401, "UNAUTHORIZED", [])

    @pytest.mark.parametrize("body", ["", "null"])
    async def test_a_refresh_without_a_token_is_a_422(self, service: Service, body: str) -> None:
        response = await service.client.post(
            "/auth/refresh", content=body, headers={"Content-Type": "application/json"}
        )

        assert refusal(response) == (422, "VALIDATION_ERROR", ["body"])


class TestRefresh:
    async def test_it_answers_with_the_next_cookie(self, service: Service) -> None:
        first = await log_in_by_cookie(service)

        response = await refresh(service, first)

        cookie, body = cookie_of(response), response.json()
        assert service.signer.read_refresh(cookie.value).generation == 2
        assert cookie["max-age"] == str(body["refresh_expires_in"])
        assert body["refresh_token"] is None
        assert cookie.value not in response.text
        assert (await me(service, LoggedIn(body["access_token"], "", body["user_id"]))).status_code == 200

    async def test_a_cookie_sent_again_within_the_grace_gets_the_same_successor(self, service: Service) -> None:
        first = await log_in_by_cookie(service)

        second, again = [cookie_of(await refresh(service, first)).value for _ in range(2)]

        assert again == second

    async def test_a_replay_ends_the_session_and_deletes_the_cookie(self, service: Service) -> None:
        first = await log_in_by_cookie(service)
        second = cookie_of(await refresh(service, first)).value
        third = cookie_of(await refresh(service, second)).value

        replay = await refresh(service, first)

        assert refusal(replay) == (401, "INVALID_REFRESH_TOKEN", [])
        assert is_deleted(replay)
        assert not await is_live(service, third)

    async def test_a_token_in_the_body_wins_and_is_answered_in_the_body(self, service: Service) -> None:
        cookie = await log_in_by_cookie(service)
        token = (await log_in(service)).refresh_token

        response = await service.client.post(
            "/auth/refresh", json={"refresh_token": token}, headers={"Cookie": f"{COOKIE}={cookie}"}
        )

        assert service.signer.read_refresh(response.json()["refresh_token"]).generation == 2
        assert "set-cookie" not in response.headers
        assert service.signer.read_refresh(cookie_of(await refresh(service, cookie)).value).generation == 2

    async def test_a_wrong_token_in_the_body_deletes_no_cookie(self, service: Service) -> None:
        cookie = await log_in_by_cookie(service)

        response = await service.client.post(
            "/auth/refresh", json={"refresh_token": "wrong"}, headers={"Cookie": f"{COOKIE}={cookie}"}
        )

        assert refusal(response) == (401, "INVALID_REFRESH_TOKEN", [])
        assert "set-cookie" not in response.headers

    async def test_without_any_token_it_is_a_401(self, service: Service) -> None:
        response = await service.client.post("/auth/refresh")

        assert refusal(response) == (401, "INVALID_REFRESH_TOKEN", [])

    @pytest.mark.parametrize("cookie", ["wrong", "a.b.c", '"', "." * 5000])
    async def test_what_is_no_token_is_a_401_and_deleted(self, service: Service, cookie: str) -> None:
        response = await refresh(service, cookie)

        assert refusal(response) == (401, "INVALID_REFRESH_TOKEN", [])
        assert response.headers["www-authenticate"] == "Bearer"
        assert is_deleted(response)


class TestLogOut:
    async def test_it_ends_the_session_and_deletes_the_cookie(self, service: Service) -> None:
        cookie = await log_in_by_cookie(service)

        response = await log_out(service, cookie)

        assert response.status_code == 204
        assert is_deleted(response)
        assert not await is_live(service, cookie)

    async def test_a_cookie_whose_session_has_ended_is_deleted(self, service: Service) -> None:
        cookie = await log_in_by_cookie(service)
        await log_out(service, cookie)

        response = await log_out(service, cookie)

        assert response.status_code == 204
        assert is_deleted(response)

    @pytest.mark.parametrize("cookie", ["wrong", ""])
    async def test_what_is_no_token_is_a_401_and_deleted(self, service: Service, cookie: str) -> None:
        response = await log_out(service, cookie)

        assert refusal(response) == (401, "INVALID_REFRESH_TOKEN", [])
        assert is_deleted(response)

    async def test_an_access_token_wins_and_the_cookie_is_deleted(self, service: Service) -> None:
        cookie, other = await log_in_by_cookie(service), await log_in(service)

        response = await log_out(service, cookie, other.bearer)

        assert response.status_code == 204
        assert is_deleted(response)
        assert (await me(service, other)).status_code == 401
        assert await is_live(service, cookie)

    async def test_a_token_in_the_body_wins(self, service: Service) -> None:
        cookie, other = await log_in_by_cookie(service), await log_in(service)

        response = await service.client.post(
            "/auth/logout", json={"refresh_token": other.refresh_token}, headers={"Cookie": f"{COOKIE}={cookie}"}
        )

        assert response.status_code == 204
        assert (await me(service, other)).status_code == 401
        assert await is_live(service, cookie)

    async def test_without_a_cookie_none_is_deleted(self, service: Service) -> None:
        await create_account(service)

        response = await service.client.post("/auth/logout", headers=(await log_in(service)).bearer)

        assert response.status_code == 204
        assert "set-cookie" not in response.headers


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": f"{HERE}.evil.example"},
    {"Origin": "http://auth.example.com"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "https://other.example.com", "Sec-Fetch-Site": "same-site"},
    {"Origin": APP, "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
OURS: list[dict[str, str]] = [
    {},
    {"Origin": HERE, "Sec-Fetch-Site": "same-origin"},
    {"Origin": APP, "Sec-Fetch-Site": "same-site"},
    {"Origin": APP},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
]

Ask = Callable[[Service, str, Mapping[str, str]], Awaitable[Response]]


async def log_in_again(service: Service, _cookie: str, headers: Mapping[str, str]) -> Response:
    return await post_cookie_log_in(service, headers)


@pytest.mark.parametrize("ask", [refresh, log_out, log_in_again])
class TestOrigins:
    async def test_a_foreign_origin_is_a_403_that_leaves_the_cookie_as_it_was(self, service: Service, ask: Ask) -> None:
        cookie = await log_in_by_cookie(service)

        for headers in FOREIGN:
            response = await ask(service, cookie, headers)
            assert refusal(response) == (403, "FOREIGN_ORIGIN", []), headers
            assert "set-cookie" not in response.headers

        assert service.signer.read_refresh(cookie_of(await refresh(service, cookie)).value).generation == 2

    @pytest.mark.parametrize("headers", OURS)
    async def test_ours_and_whatever_is_no_browser_may_use_it(
        self, service: Service, ask: Ask, headers: Mapping[str, str]
    ) -> None:
        cookie = await log_in_by_cookie(service)

        response = await ask(service, cookie, headers)

        assert response.is_success
        assert COOKIE in response.headers["set-cookie"]


async def test_a_log_in_of_a_foreign_origin_costs_no_hash(service: Service) -> None:
    pool = count_hashes(service)

    response = await post_cookie_log_in(service, {"Origin": "https://evil.example"})

    assert refusal(response) == (403, "FOREIGN_ORIGIN", [])
    assert pool.count == 0


async def test_the_public_urls_path_is_no_part_of_its_origin(start_service: StartService) -> None:
    service = await start_service(auth_refresh_cookie=True, server_public_url=f"{HERE}:443/accounts")
    cookie = await log_in_by_cookie(service)

    assert (await refresh(service, cookie, {"Origin": HERE})).status_code == 200


async def test_without_a_cookie_origins_do_not_matter(service: Service) -> None:
    await create_account(service)
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}

    response = await post_log_in(service, **foreign)

    assert response.status_code == 200
