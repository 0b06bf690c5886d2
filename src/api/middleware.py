"""What every request passes through, as plain ASGI: `BaseHTTPMiddleware` would cost most of the throughput."""

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from uuid import uuid4

from opentelemetry.trace import get_current_span
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.dependencies import runtime_of
from src.api.errors import envelope, log_line
from src.core.callers import AuthenticatedClient, AuthenticatedUser
from src.core.exceptions import AppException, ServiceUnavailableException
from src.core.logs import client_has_left, request_id

log = logging.getLogger(__name__)

# Whoever restarts a service that does not answer would make things worse, and who watches it needs to see the load.
UNLIMITED_PATHS = frozenset({"/health/live", "/metrics"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # anything else could forge lines in the log

_DEFAULT_HEADERS = {
    "Cache-Control": "no-store",  # answers hold tokens and people (RFC 6749, section 5.1)
    "X-Content-Type-Options": "nosniff",
}

# A year. Not includeSubDomains: the domain's other hosts are not ours to bind. Browsers ignore it over http (RFC 6797).
_HSTS = {"Strict-Transport-Security": "max-age=31536000"}


class RequestMiddleware:
    """Names each request, sets the headers that all answers carry, and writes the request's line in the log.

    The id is the caller's `X-Request-ID` or a new one; it stands in the answer and in every line of the log.
    """

    def __init__(self, app: ASGIApp, *, is_https: bool) -> None:
        self._app = app
        self._default_headers = _DEFAULT_HEADERS | (_HSTS if is_https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, started_at = scope["method"], time.perf_counter()
        is_head = method == "HEAD"
        if is_head:  # RFC 9110, section 9.3.2: the answer of GET, without its body
            scope = {**scope, "method": "GET"}
        given = Headers(scope=scope).get("x-request-id", "")
        id_ = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})
        request_id.set(id_)
        get_current_span().set_attribute("http.response.header.x-request-id", (id_,))
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = id_
                for name, value in self._default_headers.items():
                    headers.setdefault(name, value)
            if is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await _send_if_connected(send, message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started_at
            runtime_of(scope["app"]).metrics.observe_request(method, _route_of(scope), status, seconds)
            _log_request(scope, method, status, seconds)


def _route_of(scope: Scope) -> str | None:
    """The template of its path: `/api/users/{user_id}`."""
    path: str | None = getattr(scope.get("route"), "path", None)
    return path


async def _send_if_connected(send: Send, message: Message) -> None:
    try:
        await send(message)
    except RuntimeError as error:
        # uvicorn answers what was pipelined behind a connection that has been closed, and uvloop refuses to write.
        if "closed" not in str(error):
            raise
        client_has_left.set(True)
        log.debug("The client has left before its answer")


def _log_request(scope: Scope, method: str, status: int | None, seconds: float) -> None:
    """The route's template rather than the path, and never the query: either may hold what is secret or personal."""
    if not log.isEnabledFor(logging.INFO):
        return
    milliseconds = round(seconds * 1000, 1)
    route = _route_of(scope)
    fields = {"method": method, "route": route, "status": status, "milliseconds": milliseconds}
    match scope["state"].get("caller"):
        case AuthenticatedUser(user=user):
            fields["user_id"] = str(user.id)
        case AuthenticatedClient(client_id=client_id):
            fields["client_id"] = str(client_id)
    who = fields.get("user_id") or fields.get("client_id") or "nobody"
    log.info("%s %s %s in %s ms by %s", method, route, status, milliseconds, who, extra={"fields": fields})


class RequestLimit:
    """Refuses requests beyond a number at once with 503: they would only make all others wait longer."""

    def __init__(self, app: ASGIApp, *, max_requests: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) in UNLIMITED_PATHS:
            await self._app(scope, receive, send)
            return
        if self._running >= self._max_requests:
            await envelope(ServiceUnavailableException(), path=scope["path"])(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


class ErrorMiddleware:
    """Answers what nobody foresaw, under the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            # The server stops and waits no longer. Raising on would end in its own plain 500, under a traceback.
            if not has_started:
                await envelope(ServiceUnavailableException(), path=scope["path"])(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the last resort, which must miss nothing
            log.error("The request failed\n%s", format_error(error))  # noqa: TRY400 - not the exception's text
            if not has_started:
                refusal = AppException(details={"request_id": request_id.get()})
                await envelope(refusal, path=scope["path"])(scope, receive, send)


def format_error(error: BaseException) -> str:
    """The traceback, but of each exception's text only what `log_line` lets through."""
    lines = [f"{log_line(error)}\n", *traceback.format_tb(error.__traceback__)]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(lines) + (f"Caused by {format_error(cause)}" if cause else "")


class BodyLimitMiddleware:
    """Stops reading a body that is too large, whether or not its length was declared.

    Starlette has a limit of its own, but it answers in plain text.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def receive_within_limit() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413)  # FastAPI takes any other exception for an unreadable body
            return message

        await self._app(scope, receive_within_limit, send)


class ForwardedCheck:
    """Warns, once, of a proxy that uvicorn does not trust: all who come through it would look alike.

    Where uvicorn trusts the proxy, it has replaced the proxy's address with one from X-Forwarded-For. So an address
    that is not in the header is that of a proxy which uvicorn does not trust. The header itself is not logged: anyone
    may send one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._has_warned:
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        forwarded = ",".join(value.decode("latin1") for name, value in scope["headers"] if name == b"x-forwarded-for")
        client = scope.get("client")
        host = client[0] if client else ""
        if not forwarded.strip(", ") or (host and host in forwarded):
            return
        self._has_warned = True
        log.warning(
            "X-Forwarded-For came from %s and is not believed, so all who come that way look like one. If that is your "
            "proxy, set FORWARDED_ALLOW_IPS: see docs/behind-a-proxy.md",
            host or "a unix socket",
        )


class StartupChecks:
    """Runs a check before the lifespan, and stops the start if it fails. Of a `StartupRefused` the server logs the text
    alone; what the lifespan raises itself is logged under a traceback."""

    def __init__(self, app: ASGIApp, *, check: Callable[[], Awaitable[None]]) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                await self._check()
            except Exception as error:  # noqa: BLE001 - left to the server, it would start all the same
                text = str(error) if isinstance(error, StartupRefused) else format_error(error)
                await receive()
                await send({"type": "lifespan.startup.failed", "message": text})
                return
        await self._app(scope, receive, send)


class StartupRefused(Exception):  # noqa: N818 - reads as the outcome that it is
    """The service must not start as it is configured. The text says why, and what to do."""
