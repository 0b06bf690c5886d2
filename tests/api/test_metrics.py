"""`GET /metrics`: what operators see, and who may."""

import asyncio
import platform
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from httpx import AsyncClient
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from src.api.app import create_app
from src.api.dependencies import runtime_of
from src.api.prometheus import make_private
from src.core.hash_pool import HashKind, HashPool
from src.core.limits import Rate
from src.db import AsyncDatabaseManager
from src.db.models import OutboxEmailModel
from tests.support.databases import add_rows
from tests.support.processes import run_service
from tests.support.service import Service, connect, make_settings, use_database
from tests.support.steps import create_account, log_in, post_log_in

TOKEN = "a-token-for-prometheus"
RATE = {"rate_limit_failures_per_account": Rate(2, 3600), "rate_limit_failures_per_account_and_origin": Rate(2, 3600)}


@pytest_asyncio.fixture
async def counted(database: AsyncDatabaseManager) -> AsyncGenerator[Service, None]:
    """A service that counts; each has an application of its own, which begins at nought."""
    app = create_app(make_settings(metrics_token=TOKEN, **RATE))
    runtime_of(app).answer_step_seconds = 0
    use_database(app, database)
    async with connect(app) as client:
        yield Service(app, client, database)


async def scrape(client: AsyncClient) -> Mapping[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels."""
    response = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 200, response.text
    families = text_string_to_metric_families(response.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


async def test_without_a_token_of_its_own_there_are_no_metrics(service: Service) -> None:
    assert (await service.client.get("/metrics")).status_code == 404


@pytest.mark.parametrize("sent", [None, "Bearer wrong", TOKEN, "Bearer ", f"Basic {TOKEN}"])
async def test_only_who_has_the_token_may_read_them(counted: Service, sent: str | None) -> None:
    response = await counted.client.get("/metrics", headers={"Authorization": sent} if sent else {})

    assert (response.status_code, response.json()["code"]) == (401, "UNAUTHORIZED")


async def test_requests_are_counted_by_route_and_status_and_paths_that_are_none_together(counted: Service) -> None:
    for path in ("/health/live", "/health/live", "/canary", "/canary/2"):
        await counted.client.get(path)

    samples = await scrape(counted.client)

    assert samples["http_server_request_duration_seconds_count", "GET", "/health/live", "200"] == 2
    assert samples["http_server_request_duration_seconds_count", "", "unknown", "404"] == 2
    assert not any("canary" in "".join(key) for key in samples)


async def test_log_ins_are_counted_by_outcome_and_limits_by_name(counted: Service) -> None:
    await create_account(counted)
    await log_in(counted)
    for _ in range(4):
        await post_log_in(counted, password="a-wrong-passphrase")

    samples = await scrape(counted.client)

    assert samples["auth_events_total", "log_in", "success", "", "true"] == 1
    assert samples["auth_events_total", "log_in", "failure", "INVALID_CREDENTIALS", "true"] == 2
    assert samples["rate_limit_refusals_total", "password"] == 2
    assert samples["password_hash_wait_seconds_count", "log-in"] == 3


async def test_refusals_that_leave_no_event_are_counted(counted: Service) -> None:
    await counted.client.post("/auth/activate", json={"token": "nonsense"})

    samples = await scrape(counted.client)

    assert samples["auth_events_total", "activation", "failure", "INVALID_TOKEN", "false"] == 1


async def test_a_full_queue_of_hashes_is_seen(counted: Service) -> None:
    runtime = runtime_of(counted.app)
    runtime.hash_pool = HashPool(threads=1, queue_size=1, metrics=runtime.metrics)
    gate = asyncio.Event()

    async def wait_at_gate() -> bool:
        await gate.wait()
        return True

    def job() -> asyncio.Task[None]:
        work = runtime.hash_pool.run(lambda: None, kind=HashKind.LOG_IN, origin="a", is_disconnected=wait_at_gate)
        return asyncio.create_task(work)

    jobs = [job() for _ in range(3)]
    await asyncio.sleep(0)
    samples = await scrape(counted.client)
    gate.set()
    await asyncio.gather(*jobs, return_exceptions=True)

    assert samples["password_hash_waiting",] == 1
    assert samples["password_hash_refusals_total", "log-in"] == 1


async def test_what_waits_in_the_outbox_is_seen(counted: Service, database: AsyncDatabaseManager) -> None:
    await add_rows(database, OutboxEmailModel(kind="activation", to_email="ana@example.com"))

    samples = await scrape(counted.client)

    assert samples["outbox_emails_waiting",] == 1
    assert 0 <= samples["outbox_oldest_seconds",] < 60
    assert samples["database_pool_size",] == 20


async def test_metrics_are_there_when_the_database_is_not(counted: Service) -> None:
    use_database(counted.app, AsyncDatabaseManager("postgresql://nobody@127.0.0.1:1/nothing"))

    samples = await scrape(counted.client)

    assert ("outbox_emails_waiting",) not in samples
    assert {*next(key for key in samples if key[0] == "build_info")} > {counted.app.version, platform.python_version()}
    assert {key[1] for key in samples if key[0] == "signing_key_age_seconds"} == {"access", "refresh", "encryption"}


def test_a_folder_that_somebody_else_has_put_in_its_place_is_not_written_to(tmp_path: Path) -> None:
    make_private(tmp_path / "own")
    make_private(tmp_path / "own")  # the next worker
    (tmp_path / "link").symlink_to(tmp_path / "own")

    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    with pytest.raises(PermissionError, match="somebody else's"):
        make_private(tmp_path / "link")


@pytest.mark.slow
def test_whichever_worker_is_asked_tells_of_all(tmp_path: Path) -> None:
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "METRICS_TOKEN": TOKEN, "TMPDIR": str(tmp_path)}
    with run_service(tmp_path, "--workers", "2", **settings) as service:
        service.wait_until_ready()
        for _ in range(40):  # each on a connection of its own, and so at either worker
            httpx.get(f"{service.url}/health/live")

        texts = [read_metrics(service.url) for _ in range(6)]

    for text in texts:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        assert [sample.value for sample in samples if is_count_of_live(sample)] == [40]
        assert {sample.value for sample in samples if sample.name == "database_pool_size"} == {2 * 20}


def read_metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text


def is_count_of_live(sample: Sample) -> bool:
    name = "http_server_request_duration_seconds_count"
    return sample.name == name and sample.labels["route"] == "/health/live"
