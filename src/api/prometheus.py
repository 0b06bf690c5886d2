"""`GET /metrics`, for Prometheus: loaded only where METRICS_TOKEN is set.

The workers of one service count together, in files of a folder that they share (the multiprocess mode of
prometheus-client), so that it does not matter which of them is asked.
"""

import asyncio
import hmac
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from fastapi import FastAPI, Request, Response


def _share_with_workers() -> None:
    """Before the library is loaded, which looks for the folder then. Workers are children of one supervisor."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None or "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        return
    folder = Path(tempfile.gettempdir(), f"user-auth-service-metrics-{os.getuid()}-{supervisor.pid}")
    make_private(folder)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def make_private(folder: Path) -> None:
    """Raises `PermissionError` if somebody else has made it, or a link of its name: our files would land in theirs."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is somebody else's: remove it, or set PROMETHEUS_MULTIPROC_DIR")


_share_with_workers()

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess  # noqa: E402
from prometheus_client.core import GaugeMetricFamily, Metric  # noqa: E402
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4  # noqa: E402

from src.api.dependencies import RuntimeDep, SessionDep, db  # noqa: E402
from src.core.exceptions import UnauthorizedException  # noqa: E402
from src.core.metrics import Metrics  # noqa: E402
from src.db.base import utc_now  # noqa: E402
from src.db.repositories import OutboxRepository  # noqa: E402
from src.services import Runtime  # noqa: E402

STATE_SECONDS = 1.0
QUERY_SECONDS = 2.0  # less than a scrape waits
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
HASH_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
UNKNOWN_ROUTE = "unknown"  # a label for each path would let anybody fill the memory


class PrometheusMetrics(Metrics):
    """Metrics that are counted."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Histogram(
            "http_server_request_duration_seconds",
            "How long requests took, by the template of their route.",
            ("method", "route", "status"),
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._children: dict[tuple[str, str, int], Histogram] = {}
        self._hash_waits = Histogram(
            "password_hash_wait_seconds",
            "How long passwords waited for their turn to be hashed.",
            ("kind",),
            buckets=HASH_BUCKETS,
            registry=registry,
        )
        self._hash_refusals = Counter(
            "password_hash_refusals", "Passwords that had no room to wait.", ("kind",), registry=registry
        )
        self._limits = Counter(
            "rate_limit_refusals", "Requests that a rate limit refused.", ("limit",), registry=registry
        )
        self._events = Counter(
            "auth_events",
            "What mattered to security; `reason` is the code of a refusal, `stored` whether the audit trail has it.",
            ("kind", "outcome", "reason", "stored"),
            registry=registry,
        )
        self._hash_queue = _worker_gauge("password_hash_waiting", "Passwords that wait to be hashed.", registry)
        self._in_use = _worker_gauge("database_connections_in_use", "Connections that are in use.", registry)
        self._pool_size = _worker_gauge("database_pool_size", "Connections that may be open.", registry)

    def observe_request(self, method: str, route: str | None, status: int | None, seconds: float) -> None:
        labels = (method if route else "", route or UNKNOWN_ROUTE, status or 0)
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._requests.labels(*labels)
        child.observe(seconds)

    def observe_hash_wait(self, kind: str, seconds: float) -> None:
        self._hash_waits.labels(kind).observe(seconds)

    def count_hash_refusal(self, kind: str) -> None:
        self._hash_refusals.labels(kind).inc()

    def count_limit(self, limit: str) -> None:
        self._limits.labels(limit.replace(" ", "_")).inc()

    def count_event(self, kind: str, failure: str | None, *, is_stored: bool) -> None:
        outcome = "failure" if failure else "success"
        self._events.labels(kind, outcome, failure or "", str(is_stored).lower()).inc()

    def set_state(self, runtime: Runtime) -> None:
        """What is no count, as it is now."""
        self._hash_queue.set(runtime.hash_pool.waiting)
        self._in_use.set(db.connections_in_use)
        self._pool_size.set(db.pool_size)


def _worker_gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    """The sum of the workers that live."""
    return Gauge(name, text, registry=registry, multiprocess_mode="livesum")


class SharedState:
    """What is the same for every worker, as it was a moment ago."""

    def __init__(self, runtime: Runtime, *, version: str, queue: tuple[int, float] | None) -> None:
        self._runtime = runtime
        self._version = version
        self._queue = queue

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("build_info", "What runs.", labels=("version", "python"))
        info.add_metric((self._version, platform.python_version()), 1)
        yield info
        ages = GaugeMetricFamily("signing_key_age_seconds", "Age of the key in use, for each use.", labels=("use",))
        for use, age in self._key_ages():
            ages.add_metric((use,), age)
        yield ages
        if self._queue is not None:
            count, oldest = self._queue
            yield GaugeMetricFamily("outbox_emails_waiting", "Emails that are queued.", value=count)
            yield GaugeMetricFamily("outbox_oldest_seconds", "How long the oldest of them has waited.", value=oldest)

    def _key_ages(self) -> Iterable[tuple[str, float]]:
        ring, now = self._runtime.signer.keys, utc_now()
        for use, keys in (
            ("access", ring.access_keys),
            ("refresh", ring.refresh_keys),
            ("encryption", ring.encryption_keys),
        ):
            used = [key for key in keys if key.signs_from <= now] or keys
            if used:
                yield use, (now - max(key.created_at for key in used)).total_seconds()


async def watch(runtime: Runtime) -> None:
    """Keep this worker's state where a scrape that reaches another worker finds it, until cancelled."""
    while True:
        _metrics_of(runtime).set_state(runtime)
        await asyncio.sleep(STATE_SECONDS)


def _metrics_of(runtime: Runtime) -> PrometheusMetrics:
    assert isinstance(runtime.metrics, PrometheusMetrics)  # noqa: S101 - nothing here is loaded without it
    return runtime.metrics


def install(app: FastAPI) -> PrometheusMetrics:
    """Add the route. What is returned counts from then on."""
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        _forget_dead_workers(Path(folder))
    app.add_api_route("/metrics", get_metrics, include_in_schema=False)
    return PrometheusMetrics()


async def get_metrics(request: Request, session: SessionDep, runtime: RuntimeDep) -> Response:
    """For whoever sends METRICS_TOKEN as a bearer token."""
    sent = request.headers.get("authorization", "").encode()
    if not hmac.compare_digest(sent, f"Bearer {runtime.settings.metrics_token}".encode()):
        raise UnauthorizedException("Send METRICS_TOKEN as a bearer token.")
    shared = CollectorRegistry()
    queue = await _measure_queue(OutboxRepository(session))
    shared.register(SharedState(runtime, version=request.app.version, queue=queue))
    metrics = _metrics_of(runtime)
    metrics.set_state(runtime)
    counted = metrics.registry
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        counted = CollectorRegistry()
        multiprocess.MultiProcessCollector(counted)  # type: ignore[no-untyped-call]  # the library types not all of it
    text = generate_latest(shared) + generate_latest(counted)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _measure_queue(emails: OutboxRepository) -> tuple[int, float] | None:
    """`None` where the database does not tell in time: the other metrics say more then."""
    with suppress(Exception):
        async with asyncio.timeout(QUERY_SECONDS):
            count, oldest = await emails.measure_queue()
            return count, (utc_now() - oldest).total_seconds() if oldest else 0.0
    return None


def _forget_dead_workers(folder: Path) -> None:
    """Their counts stay, as counters never fall; their states go."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*_*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # as above
        except PermissionError:
            pass
