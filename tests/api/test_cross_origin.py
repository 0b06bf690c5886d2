"""What browsers are told: which front ends of other origins may read the answers, and to come by https alone."""

import subprocess
import sys
from collections.abc import Mapping

import pytest
from httpx import AsyncClient, Response

from src.api.app import create_app
from src.core.exceptions import ServiceUnavailableException
from tests.support.service import Service, StartService, connect, make_settings
from tests.support.steps import UNKNOWN_ID, refusal

APP = "https://app.example.com"
ELSEWHERE = "https://elsewhere.example.com"


@pytest.fixture
async def service(start_service: StartService) -> Service:
    return await start_service(cors_allowed_origins=f"{APP}, https://admin.example.com:8443")


async def preflight(client: AsyncClient, origin: str = APP, method: str = "PATCH", headers: str = "") -> Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    if headers:
        asked["Access-Control-Request-Headers"] = headers
    return await client.options(f"/api/users/{UNKNOWN_ID}", headers=asked)


def names(header: str) -> set[str]:
    return {name.strip() for name in header.split(",")}


class TestPreflight:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "DELETE"])
    @pytest.mark.parametrize("origin", [APP, "https://admin.example.com:8443"])
    async def test_a_listed_origin_may_ask_for_all_that_the_api_takes(
        self, service: Service, origin: str, method: str
    ) -> None:
        asked = "authorization, content-type, if-match, x-request-id"

        response = await preflight(service.client, origin, method, asked)

        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
        assert method in names(response.headers["access-control-allow-methods"])
        assert names(asked) <= names(response.headers["access-control-allow-headers"].lower())
        assert "access-control-allow-credentials" not in response.headers

    @pytest.mark.parametrize(
        ("origin", "method", "header", "reason"),
        [
            (ELSEWHERE, "PATCH", "", "origin"),
            ("null", "PATCH", "", "origin"),
            (f"{APP}.evil.example", "PATCH", "", "origin"),
            ("http://app.example.com", "PATCH", "", "origin"),
            (APP, "PUT", "", "method"),
            (APP, "PATCH", "x-other", "headers"),
        ],
    )
    async def test_another_is_refused_in_the_envelope(
        self, service: Service, origin: str, method: str, header: str, reason: str
    ) -> None:
        response = await preflight(service.client, origin, method, header)

        assert refusal(response) == (400, "BAD_REQUEST", [])
        assert response.json()["detail"] == f"Disallowed CORS {reason}."
        assert "Origin" in names(response.headers["vary"])

    async def test_no_origin_is_listed_by_default(self, start_service: StartService) -> None:
        service = await start_service()

        response = await preflight(service.client)

        assert refusal(response) == (405, "METHOD_NOT_ALLOWED", [])
        assert not [name for name in response.headers if name.startswith("access-control")]

    async def test_it_carries_what_all_answers_carry(self, service: Service) -> None:
        response = await preflight(service.client)

        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-request-id"]


class TestAnswers:
    async def test_a_listed_origin_may_read_them_and_the_headers_that_it_needs(self, service: Service) -> None:
        response = await service.client.get("/health/live", headers={"Origin": APP})

        assert response.headers["access-control-allow-origin"] == APP
        assert "Origin" in names(response.headers["vary"])
        assert names(response.headers["access-control-expose-headers"]) == {
            "ETag",
            "RateLimit-Limit",
            "RateLimit-Policy",
            "RateLimit-Remaining",
            "RateLimit-Reset",
            "Retry-After",
            "WWW-Authenticate",
            "X-Request-ID",
        }

    async def test_another_origin_may_not(self, service: Service) -> None:
        response = await service.client.get("/health/live", headers={"Origin": ELSEWHERE})

        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers
        assert "Origin" in names(response.headers["vary"])

    @pytest.mark.parametrize(
        ("method", "path", "content", "status"),
        [
            ("GET", "/auth/me", "", 401),
            ("GET", "/nowhere", "", 404),
            ("DELETE", "/auth/login", "", 405),
            ("POST", "/auth/login", " " * 70_000, 413),
            ("POST", "/auth/login", "{}", 422),
        ],
    )
    async def test_errors_can_be_read_too(
        self, service: Service, method: str, path: str, content: str, status: int
    ) -> None:
        headers = {"Origin": APP, "Content-Type": "application/json"}

        response = await service.client.request(method, path, content=content, headers=headers)

        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == APP

    @pytest.mark.parametrize(("error", "status"), [(RuntimeError(), 500), (ServiceUnavailableException(), 503)])
    async def test_failures_of_the_service_can_be_read_too(self, error: Exception, status: int) -> None:
        app = create_app(make_settings(cors_allowed_origins=APP))

        @app.get("/fail")
        async def fail() -> None:
            raise error

        async with connect(app) as client:
            response = await client.get("/fail", headers={"Origin": APP})

        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == APP

    async def test_credentials_are_allowed_where_the_refresh_cookie_is(self, start_service: StartService) -> None:
        service = await start_service(cors_allowed_origins=APP, auth_refresh_cookie=True)

        asked, answered = await preflight(service.client), await service.client.get("/", headers={"Origin": APP})

        assert asked.headers["access-control-allow-credentials"] == "true"
        assert answered.headers["access-control-allow-credentials"] == "true"

    async def test_in_development_any_origin_may_be_allowed_without_credentials(
        self, start_service: StartService
    ) -> None:
        service = await start_service(cors_allowed_origins="*")

        response = await service.client.get("/health/live", headers={"Origin": ELSEWHERE})

        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers


class TestStrictTransportSecurity:
    @pytest.mark.parametrize(
        ("method", "path", "headers"),
        [
            ("GET", "/health/live", {}),
            ("GET", "/nowhere", {}),
            ("GET", "/activate?token=x", {}),
            ("OPTIONS", "/auth/login", {"Origin": APP, "Access-Control-Request-Method": "POST"}),
        ],
    )
    async def test_every_answer_has_it_where_the_public_url_is_https(
        self, start_service: StartService, method: str, path: str, headers: Mapping[str, str]
    ) -> None:
        service = await start_service(server_public_url="https://auth.example.com", cors_allowed_origins=APP)

        response = await service.client.request(method, path, headers=headers)

        assert response.headers["strict-transport-security"] == "max-age=31536000"

    async def test_an_http_one_has_none(self, start_service: StartService) -> None:
        service = await start_service(server_public_url="http://localhost:8000")

        assert "strict-transport-security" not in (await service.client.get("/health/live")).headers


@pytest.mark.slow
def test_what_nobody_asked_for_is_not_loaded() -> None:
    loaded = "import sys, src.api.app; print('starlette.middleware.cors' in sys.modules)"

    printed = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout

    assert printed == "False\n"
