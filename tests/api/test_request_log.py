"""A line a request, and its id on every line that belongs to it; never what was sent."""

import json
import logging
from collections.abc import Iterator

import pytest

from src.core.callers import Scope
from src.core.logs import JsonFormatter
from tests.support.service import Service
from tests.support.steps import bearer, create_account, create_client, log_in, service_token


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the service writes, as JSON."""
    with caplog.at_level(logging.INFO, "src"):
        caplog.handler.setFormatter(JsonFormatter())
        yield caplog


def lines_of(log: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.text.splitlines()]


async def test_a_line_tells_who_asked_for_which_route_and_what_became_of_it(
    service: Service, log: pytest.LogCaptureFixture
) -> None:
    user_id = await create_account(service)
    ana = await log_in(service)
    log.clear()

    await service.client.get(f"/api/users/{user_id}?canary=1", headers=ana.bearer | {"X-Request-ID": "trace-1"})

    [line] = lines_of(log)
    milliseconds = line.pop("milliseconds")
    assert isinstance(milliseconds, float)
    assert str(line.pop("time")).endswith("Z")
    assert line == {
        "level": "info",
        "logger": "src.api.middleware",
        "message": f"GET /api/users/{{user_id}} 200 in {milliseconds} ms by {user_id}",
        "request_id": "trace-1",
        "method": "GET",
        "route": "/api/users/{user_id}",
        "status": 200,
        "user_id": user_id,
    }


async def test_a_service_is_named_by_its_client_id(service: Service, log: pytest.LogCaptureFixture) -> None:
    client = await create_client(service, Scope.USERS_READ)
    token = await service_token(service, client)

    await service.client.get("/api/users", headers=bearer(token))

    assert lines_of(log)[-1]["client_id"] == str(client.client_id)


@pytest.mark.parametrize("path", ["/canary", "/activate?token=canary"])
async def test_a_line_repeats_nothing_of_the_path_or_the_query(
    service: Service, log: pytest.LogCaptureFixture, path: str
) -> None:
    await service.client.get(path, headers={"User-Agent": "canary"})

    assert len(lines_of(log)) == 1
    assert "canary" not in log.text


async def test_a_head_request_is_logged_as_what_it_was(service: Service, log: pytest.LogCaptureFixture) -> None:
    await service.client.head("/health/live")

    assert "HEAD /health/live 200" in str(lines_of(log)[0]["message"])


async def test_lines_of_a_use_case_carry_the_id_of_their_request(
    service: Service, log: pytest.LogCaptureFixture
) -> None:
    await create_account(service)
    ana = await log_in(service)
    for _ in range(2):  # the second is a replay, as soon as the first successor has been used
        response = await service.client.post("/auth/refresh", json={"refresh_token": ana.refresh_token})
    await service.client.post("/auth/refresh", json={"refresh_token": response.json()["refresh_token"]})
    log.clear()

    replayed = {"X-Request-ID": "the-replay"}
    await service.client.post("/auth/refresh", json={"refresh_token": ana.refresh_token}, headers=replayed)

    assert [line["request_id"] for line in lines_of(log)] == ["the-replay", "the-replay"]
    assert "was replayed" in log.text


async def test_at_a_higher_level_no_line_is_written(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "src"):
        await service.client.get("/health/live")

    assert caplog.records == []
