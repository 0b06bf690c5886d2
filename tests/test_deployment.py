"""What is in `deploy/` and `compose.yaml` speaks of metrics, settings and documents that exist."""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from httpx import ASGITransport, AsyncClient

from src.api.app import create_app
from src.core.settings import Settings
from src.db import AsyncDatabaseManager
from tests.support.processes import ROOT, find_program
from tests.support.service import make_settings, use_database

TOKEN = "a-token-for-prometheus"
ALERTS = (ROOT / "deploy/prometheus/alerts.yml").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
OF_PROMETHEUS = {"up"}


def expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    yield from re.findall(r"expr: >?\s*((?:.+\n)+?) +(?:for|labels):", ALERTS)


def metrics_in(expression: str) -> set[str]:
    """The names that are followed by labels or a range, or stand alone in an aggregation."""
    return set(re.findall(r"\b([a-z]+(?:_[a-z]+)+)(?=[{\[)])", expression)) | set(re.findall(r"\b(up)\b", expression))


async def test_alerts_and_dashboard_ask_for_metrics_that_are_there(database: AsyncDatabaseManager) -> None:
    app = create_app(make_settings(metrics_token=TOKEN))
    use_database(app, database)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        text = (await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).text

    exported = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    exported |= {f"{name}{suffix}" for name in exported for suffix in ("_count", "_bucket", "_sum", "_total")}
    asked = set().union(*map(metrics_in, expressions()))
    assert len(asked) > 10
    assert asked - exported - OF_PROMETHEUS == set()


def test_each_alert_has_its_section_in_the_runbook() -> None:
    runbook = (ROOT / "docs/run/operations.md").read_text()
    alerts = re.findall(r"alert: (\w+)", ALERTS)

    assert len(alerts) == 6
    for alert in alerts:
        assert f"### {alert}\n" in runbook
        assert f"runbook: docs/run/operations.md#{alert.lower()}\n" in ALERTS


def test_compose_sets_only_what_is_a_setting() -> None:
    app = (ROOT / "compose.yaml").read_text().partition("environment:")[2].partition("depends_on:")[0]

    names = set(re.findall(r"^ +([A-Z_]+):", app, re.MULTILINE))

    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_prometheus_accepts_its_files(arguments: tuple[str, ...]) -> None:
    promtool = find_program("promtool", package="prometheus")

    done = subprocess.run([promtool, *arguments], cwd=ROOT / "deploy/prometheus", capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
