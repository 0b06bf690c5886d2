"""Steps that many tests take before the one that they are about."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

from httpx import Response

from tests.conftest import Service

PASSWORD = "strong-pass-12-chars"


async def post_sign_up(service: Service, email: str = "ana@example.com", **body: Any) -> Response:
    return await service.client.post("/auth/signup", json={"email": email, "password": PASSWORD} | body)


async def sign_up(service: Service, email: str = "ana@example.com", **body: Any) -> dict[str, Any]:
    response = await post_sign_up(service, email, **body)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def activate(service: Service, token: str) -> Response:
    return await service.client.post("/auth/activate", json={"token": token})


async def create_account(service: Service, email: str = "ana@example.com", **body: Any) -> str:
    """Sign up and follow the link; the id of the active user."""
    answer = await sign_up(service, email, **body)
    token = service.mailbox.token() if service.mailbox else token_of(answer["activation_url"])
    response = await activate(service, token)
    assert response.status_code == 200, response.text
    return str(answer["user_id"])


def token_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["token"][0]
