"""Traces and metrics by OTLP: what a collector is sent, and what never."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from src.db import AsyncDatabaseManager
from tests.support.collector import METRICS, TRACES, Collector, run_collector, values_of
from tests.support.processes import ROOT, Running, run_service, wait_until
from tests.support.steps import token_of

pytestmark = pytest.mark.slow

METRICS_TOKEN = "a-token-for-prometheus"
EMAIL, PASSWORD, WRONG = "ana@example.com", "canary-of-a-password", "canary-of-a-wrong-password"


async def test_no_trace_and_no_metric_holds_a_password_token_link_or_address(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    settings = {"DATABASE_URL": database_url, "METRICS_TOKEN": METRICS_TOKEN}
    with (
        run_collector() as collector,
        run_service(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **settings) as service,
    ):
        service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.url) as client:
            secrets = await live(client)
            await rename(database, "users", "users_away")
            failed = await client.post("/auth/login", json={"email": EMAIL, "password": PASSWORD})
            await rename(database, "users_away", "users")
            scraped = (await client.get("/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})).text
        service.send(signal.SIGTERM)

    assert failed.status_code == 500
    assert "auth_events_total" in scraped
    assert {"POST /auth/signup", "GET /activate", "POST /auth/login", "GET /auth/me"} <= names_of(collector)
    assert "http.server.request.duration" in collector.metrics
    assert collector.paths == {TRACES, METRICS}
    assert len(secrets) == 8
    assert [secret for secret in secrets if secret in collector.everything + scraped] == []


async def live(client: httpx.AsyncClient) -> set[str]:
    """Sign up, follow the link, mistype, log in and look; what of it is secret."""
    body = {"email": EMAIL, "password": PASSWORD}
    link = (await client.post("/auth/signup", json=body)).json()["activation_url"]
    token = token_of(link)
    await client.post(f"/auth/signup?token={token}", json=body | {"name": "\x00"})
    await client.get(f"/activate?token={token}")
    await client.get(f"/activate/{token}?email={EMAIL}")
    await client.post("/activate", data={"token": token})
    await client.post("/auth/login", json=body | {"password": WRONG})
    tokens = (await client.post("/auth/login", json=body)).json()
    await client.get("/auth/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    return {EMAIL, "ana%40", PASSWORD, WRONG, token, "token=", tokens["access_token"], tokens["refresh_token"]}


async def rename(database: AsyncDatabaseManager, table: str, name: str) -> None:
    async with database.session() as session:
        await session.execute(text(f"ALTER TABLE {table} RENAME TO {name}"))
        await session.commit()


def names_of(collector: Collector) -> set[str]:
    return {span.name for span in collector.spans}


def test_a_span_tells_route_status_and_request_and_joins_the_callers_trace(tmp_path: Path) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "X-Request-ID": "the-id"}
    with run_collector() as collector, run_traced(collector, tmp_path, OTEL_SERVICE_NAME="accounts") as service:
        httpx.get(f"{service.url}/health/live?canary=1", headers=headers)
        service.send(signal.SIGTERM)

    (span,) = [span for span in collector.spans if span.trace_id.hex() == trace_id]
    values = values_of(span.attributes)
    assert span.name == "GET /health/live"
    assert values["http.response.status_code"] == 200
    assert values["url.path"] == values["url.query"] == "REDACTED"
    assert values["http.response.header.x-request-id"].values[0].string_value == "the-id"
    resource = values_of(collector.traced[0].resource.attributes)
    assert (resource["service.name"], resource["service.version"]) == ("accounts", "0.1.0")


@pytest.mark.parametrize(
    ("settings", "paths"),
    [
        ({"OTEL_TRACES_EXPORTER": "none"}, {METRICS}),
        ({"OTEL_METRICS_EXPORTER": "none"}, {TRACES}),
        ({"OTEL_SDK_DISABLED": "true"}, set()),
    ],
)
def test_the_environment_says_what_is_sent(settings: dict[str, str], paths: set[str], tmp_path: Path) -> None:
    with run_collector() as collector, run_traced(collector, tmp_path, **settings) as service:
        service.send(signal.SIGTERM)

    assert collector.paths == paths


def test_logs_are_not_sent_whatever_the_environment_says(tmp_path: Path) -> None:
    with run_collector() as collector:
        environment = {
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{collector.url}/v1/logs",
        }
        with run_traced(collector, tmp_path, **environment) as service:
            httpx.post(f"{service.url}/auth/login", json={"email": EMAIL, "password": None})
            service.send(signal.SIGTERM)

    assert collector.intake == []


def test_a_collector_that_does_not_answer_delays_no_stop(tmp_path: Path) -> None:
    with run_collector() as collector, run_traced(collector, tmp_path) as service:
        collector.gate.clear()

        began_at = time.monotonic()
        service.send(signal.SIGTERM)

        assert time.monotonic() - began_at < 5  # the exporters alone would wait for 18
        assert "Application shutdown complete" in service.log


def test_a_collector_that_takes_nothing_fills_no_log(tmp_path: Path) -> None:
    with run_collector() as collector, run_traced(collector, tmp_path, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1") as service:
        collector.status = 401
        for _ in range(20):
            httpx.get(f"{service.url}/health/live")
        wait_until(lambda: len(collector.spans) >= 20)

        assert service.log.count("Failed to export spans batch code: 401") == 1


def test_nothing_of_it_is_loaded_unless_it_is_asked_for() -> None:
    code = "import sys, src.api.app; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    packages = {".".join(module.split(".")[:2]) for module in loaded.split()}
    assert "fastapi.telemetry" in packages
    assert packages.isdisjoint({"opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf", "prometheus_client"})


@contextmanager
def run_traced(collector: Collector, folder: Path, **environment: str) -> Iterator[Running]:
    settings = {"DATABASE_URL": f"sqlite:///{folder}/users.db", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    with run_service(folder, **settings | environment) as service:
        service.wait_until_ready()
        yield service
