"""What a line of the log looks like, and who may write at which level."""

import json
import logging
import sys
import time

import pytest

from src.core.logs import JsonFormatter, RareWarning, TextFormatter, request_id
from src.core.settings import Settings
from tests.support.service import make_production_settings, make_settings


def record(message: str, *, exc_info: bool = False, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("src.area", logging.WARNING, "", 0, message, (), sys.exc_info() if exc_info else None)
    made.created = 1_767_225_600.25
    made.__dict__.update(extra)
    return made


def test_a_line_of_text() -> None:
    request_id.set("the-id")

    line = TextFormatter().format(record("Something is wrong"))

    assert line == "2026-01-01T00:00:00.250Z WARNING the-id src.area: Something is wrong"


def test_a_line_of_json() -> None:
    request_id.set("the-id")

    line = JsonFormatter().format(record("Émile\nis here", fields={"status": 200, "route": None}))

    assert json.loads(line) == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "warning",
        "logger": "src.area",
        "message": "Émile\nis here",
        "request_id": "the-id",
        "status": 200,
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_traceback_belongs_to_its_record(formatter: logging.Formatter) -> None:
    try:
        int("the reason")
    except ValueError:
        line = formatter.format(record("It failed", exc_info=True))

    assert "ValueError: invalid literal" in line
    assert "\n" not in line or isinstance(formatter, TextFormatter)


@pytest.mark.parametrize(
    ("settings", "formatter"),
    [
        (make_settings(), TextFormatter),
        (make_settings(log_format="json"), JsonFormatter),
        (make_production_settings(), JsonFormatter),
        (make_production_settings(log_format="text"), TextFormatter),
    ],
)
def test_production_logs_json_unless_told_otherwise(settings: Settings, formatter: type) -> None:
    assert settings.log_config["formatters"]["line"]["()"] is formatter


@pytest.mark.parametrize(
    ("every_seconds", "messages"),
    [
        (3600, ["One", "Other"]),
        (0, ["One", "One", "Other", "One"]),
    ],
)
def test_a_rare_warning_is_repeated_only_after_a_while(
    caplog: pytest.LogCaptureFixture, every_seconds: int, messages: list[str]
) -> None:
    warning = RareWarning(logging.getLogger("src.area"), every_seconds=every_seconds)

    for text in ("One", "One", "Other", "One"):
        warning.give(text)

    assert caplog.messages == messages


def test_a_rare_warning_tells_how_often_it_was_held_back(caplog: pytest.LogCaptureFixture) -> None:
    warning = RareWarning(logging.getLogger("src.area"), every_seconds=0.05)
    for _ in range(3):
        warning.give("One")
    time.sleep(0.06)

    warning.give("One")

    assert caplog.messages == ["One", "One (2 times more since this was logged last)"]
