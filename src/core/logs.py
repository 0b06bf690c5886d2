"""How a process logs: a line a record on the standard error, text for people or JSON for programs.

Whatever starts a process applies `log_config`. Every line carries the id of the request that it
belongs to, whichever module has written it.
"""

import json
import logging
import time
from collections import Counter
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

MOST_TEXTS = 100  # that a rare warning remembers

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
client_has_left: ContextVar[bool] = ContextVar("client_has_left", default=False)


def log_config(log_format: LogFormat, level: LogLevel) -> dict[str, Any]:
    """For `logging.config.dictConfig`, and for uvicorn's `log_config`: every record goes through one handler.

    At `debug`, libraries stay at INFO: some log what they are given, which here are passwords, hashes and rows.
    """
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    theirs = "INFO" if level == "debug" else level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "filters": {"client_is_here": {"()": ClientIsHere}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": theirs},
        "loggers": {
            "src": {"level": level.upper()},
            "uvicorn": {"handlers": [], "level": level.upper(), "propagate": True},
            "uvicorn.error": {"filters": ["client_is_here"]},
            "uvicorn.access": {"handlers": [], "propagate": False},  # its lines show queries, and so tokens
            "uvicorn.asgi": {"level": "WARNING"},  # at its level "trace", the same
            "alembic.runtime.plugins": {"level": "WARNING"},  # seven lines at each start
        },
    }


class ClientIsHere(logging.Filter):
    """Drops what uvicorn says of an answer that could not be sent: it takes a closed connection for our fault."""

    def filter(self, _record: logging.LogRecord) -> bool:
        return not client_has_left.get()


class TextFormatter(logging.Formatter):
    """`time level request-id logger: message`, the time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        where = request_id.get() or "-"
        text = f"{_time_of(record)} {record.levelname:7} {where} {record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class JsonFormatter(logging.Formatter):
    """An object a line. What a record brings as `extra={"fields": …}` stands beside the members that all have."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None}, ensure_ascii=False)


class RareWarning:
    """A warning that is written once a minute at most, with how often it was held back: what goes wrong with every
    request, or with requests that anybody can send, would fill the log."""

    def __init__(self, log: logging.Logger, *, every_seconds: float = 60.0) -> None:
        self._log = log
        self._every_seconds = every_seconds
        self._silent_until: dict[str, float] = {}
        self._held_back = Counter[str]()

    def give(self, text: str) -> None:
        """Texts are told apart."""
        if time.monotonic() < self._silent_until.get(text, 0.0):
            self._held_back[text] += 1
            return
        if len(self._silent_until) >= MOST_TEXTS:
            self._silent_until.clear()
            self._held_back.clear()
        self._silent_until[text] = time.monotonic() + self._every_seconds
        count = self._held_back.pop(text, 0)
        self._log.warning("%s", text + (f" ({count} times more since this was logged last)" if count else ""))


def _time_of(record: logging.LogRecord) -> str:
    """RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
