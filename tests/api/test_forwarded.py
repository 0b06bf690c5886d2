"""Where a request comes from behind a proxy, as uvicorn hears of it, and the warning where it must not listen."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from src.api.app import create_app
from tests.support.service import Service, connect, make_settings
from tests.support.steps import PASSWORD, create_account, log_in

PROXY = "10.0.0.2"
WARNING = "X-Forwarded-For"


@pytest.fixture
def app() -> FastAPI:
    return create_app(make_settings())


@asynccontextmanager
async def through_proxy(app: Any, *, trusted: str) -> AsyncGenerator[AsyncClient, None]:
    """A client whose requests come from the proxy, to a uvicorn that trusts these addresses."""
    server: Any = ProxyHeadersMiddleware(app, trusted)  # uvicorn has types of its own for what ASGI passes
    async with connect(server, client=(PROXY, 4711)) as client:
        yield client


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("198.51.100.66, 203.0.113.7", "203.0.113.7"),
        (f"203.0.113.7,{PROXY}", "203.0.113.7"),
    ],
)
async def test_a_trusted_proxy_is_believed_without_a_warning(
    service: Service, app: FastAPI, caplog: pytest.LogCaptureFixture, forwarded: str, address: str
) -> None:
    await create_account(service)
    headers, body = {"X-Forwarded-For": forwarded}, {"email": "ana@example.com", "password": PASSWORD}
    app.dependency_overrides = service.app.dependency_overrides

    async with through_proxy(app, trusted=PROXY) as client:
        await client.post("/auth/login", json=body, headers=headers)

    sessions = await service.client.get("/auth/sessions", headers=(await log_in(service)).bearer)
    assert sessions.json()["items"][1]["client_address"] == address
    assert WARNING not in caplog.text


@pytest.mark.parametrize("forwarded", ["203.0.113.7", "203.0.113.7, 198.51.100.1", "forged\x1b[31m"])
async def test_a_proxy_that_is_not_trusted_is_warned_of_once(
    app: FastAPI, caplog: pytest.LogCaptureFixture, forwarded: str
) -> None:
    async with through_proxy(app, trusted="127.0.0.1") as client:
        for _ in range(2):
            await client.get("/health/live", headers={"X-Forwarded-For": forwarded})

    [warning] = [record.getMessage() for record in caplog.records if WARNING in record.getMessage()]
    assert PROXY in warning
    assert "FORWARDED_ALLOW_IPS" in warning
    assert forwarded not in warning


async def test_a_proxy_at_a_unix_socket_has_no_address_and_is_warned_of_too(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    async with through_proxy(without_address(app), trusted="127.0.0.1") as client:
        await client.get("/health/live", headers={"X-Forwarded-For": "203.0.113.7"})

    assert "from a unix socket" in caplog.text


def without_address(app: ASGIApp) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "client": None}, receive, send)

    return call


@pytest.mark.parametrize("headers", [{}, {"X-Forwarded-For": ""}])
async def test_who_forwards_nothing_is_not_warned_of(
    app: FastAPI, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    async with through_proxy(app, trusted="127.0.0.1") as client:
        await client.get("/health/live", headers=headers)

    assert WARNING not in caplog.text
