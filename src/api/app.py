"""The composition root: `uvicorn src.api.app:app`."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from inspect import isawaitable
from logging.config import dictConfig
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi.telemetry import TelemetryConfig

from src.api import errors, pages
from src.api.dependencies import db, get_email_utils, runtime_of
from src.api.errors import document
from src.api.middleware import (
    BodyLimitMiddleware,
    ErrorMiddleware,
    ForwardedCheck,
    RequestLimit,
    RequestMiddleware,
    StartupChecks,
    StartupRefused,
)
from src.api.openapi import DocumentedFastAPI, operation_id
from src.api.routers import (
    accounts,
    audit_events,
    credentials,
    health,
    oauth,
    second_factor,
    sessions,
    users,
    well_known,
)
from src.api.routers.well_known import DOCS_PATH
from src.core.exceptions import AppException, ServiceUnavailableException
from src.core.files import how_to_close, who_else_may_open
from src.core.keys import KeyRing, NoKeysError
from src.core.metrics import Metrics
from src.core.settings import Settings, get_settings
from src.db.migrations import DatabaseNotReadyError, prepare
from src.email import SendsEmail
from src.services import Runtime
from src.services.outbox import Dispatcher
from src.services.purge import purge_quietly

if TYPE_CHECKING:
    from src.api.telemetry import Telemetry

__all__ = ["app", "create_app", "db"]

log = logging.getLogger(__name__)

VERSION = "0.1.0"
MAX_BODY_BYTES = 64 * 1024
# By default FastAPI gives queries, and so links, to whatever else in the process collects spans.
NO_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)

DESCRIPTION = """
Owns user accounts: people sign up, log in, recover and leave; other services verify its tokens and, with credentials
of their own, read and change users. A route names the scope that a service needs for it; administrators need none.

Every error, of every kind, is `{detail, code, details}`: `detail` is for people, `code` for programs.
"""
TAGS = [
    {"name": "Accounts", "description": "Sign up and prove the address."},
    {"name": "Sessions", "description": "Log in, stay logged in, log out."},
    {"name": "OAuth 2.0", "description": "Tokens as OAuth libraries ask for them, end them and look into them."},
    {"name": "My account", "description": "Change, recover, leave."},
    {"name": "Second factor", "description": "Codes of an authenticator app, asked for at log-ins."},
    {"name": "Users", "description": "What is known of users and to whom, and what administrators and services do."},
    {"name": "Audit", "description": "What has happened: everything that matters to security, done or refused."},
    {"name": "Discovery", "description": "What other services need to verify access tokens by themselves."},
    {"name": "Health", "description": "For orchestrators and load balancers."},
]


def create_app(settings: Settings | None = None) -> FastAPI:
    """A new application on the process's database, `db`. It answers without its lifespan too, as tests need it.

    The database is DATABASE_URL's, whatever `settings` say: to move an application, override `db.session_dependency`.
    """
    settings = settings or get_settings()
    telemetry = _load_telemetry()
    app = DocumentedFastAPI(
        title="User and auth service",
        description=DESCRIPTION,
        version=VERSION,
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=_servers(settings),
        openapi_tags=TAGS,
        generate_unique_id_function=operation_id,
        lifespan=partial(_lifespan, telemetry=telemetry),
        docs_url=DOCS_PATH if settings.has_api_docs else None,
        redoc_url="/redoc" if settings.has_api_docs else None,
        redirect_slashes=False,  # the redirect would be built from the request's Host header
        responses=document(AppException, ServiceUnavailableException),
        telemetry=telemetry.config if telemetry else NO_TELEMETRY,
    )
    app.state.runtime = Runtime.from_settings(settings, _load_metrics(app, settings))
    _add_middleware(app, settings)
    errors.install(app)
    # In the order in which they are asked most: a path is tried against one route after the other.
    for module in (
        users,
        sessions,
        oauth,
        credentials,
        second_factor,
        accounts,
        well_known,
        health,
        audit_events,
        pages,
    ):
        app.include_router(module.router)
    if settings.has_api_docs:
        app.add_api_route("/", _home, include_in_schema=False)
    return app


def _load_metrics(app: FastAPI, settings: Settings) -> Metrics:
    if not settings.metrics_token:
        return Metrics()
    from src.api import prometheus

    return prometheus.install(app)


def _load_telemetry() -> "Telemetry | None":
    if not any(os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in ("", "TRACES_", "METRICS_")):
        return None
    from src.api.telemetry import Telemetry

    return Telemetry(VERSION)


def _servers(settings: Settings) -> list[dict[str, str]]:
    # The documentation page sends its requests to the first. It may be open at 127.0.0.1, or at another port.
    return [
        {"url": "/", "description": "Where this document comes from."},
        {"url": settings.server_public_url, "description": "SERVER_PUBLIC_URL"},
    ]


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """From the inside out."""
    app.add_middleware(BodyLimitMiddleware, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(ErrorMiddleware)
    app.add_middleware(RequestLimit, max_requests=settings.server_max_requests)
    if settings.cors_allowed_origins:
        from src.api import cross_origin

        cross_origin.install(app, settings)  # around the errors, which front ends read too
    app.add_middleware(RequestMiddleware, is_https=settings.is_https)
    app.add_middleware(ForwardedCheck)
    app.add_middleware(StartupChecks, check=lambda: _check_start(app))


async def _home() -> RedirectResponse:
    return RedirectResponse(DOCS_PATH)


async def _check_start(app: FastAPI) -> None:
    """Refuse what cannot work or is unsafe, and migrate what may be migrated. Raises `StartupRefused`."""
    if _has_test_database(app):
        return
    runtime = runtime_of(app)
    _check_email(runtime.settings, await _wired_email(app))
    _check_keys(runtime.signer.keys, runtime.settings)
    if runtime.settings.is_production:
        _check_files(db.files)
    try:
        await prepare(db, auto_migrate=runtime.settings.database_auto_migrate)
    except DatabaseNotReadyError as refusal:
        raise StartupRefused(str(refusal)) from None


@asynccontextmanager
async def _lifespan(app: FastAPI, telemetry: "Telemetry | None") -> AsyncIterator[None]:
    if _has_test_database(app):
        yield
        return
    runtime = runtime_of(app)
    running = [asyncio.create_task(purge_quietly(db, runtime.settings))]
    if runtime.settings.metrics_token:
        from src.api import prometheus

        running.append(asyncio.create_task(prometheus.watch(runtime)))
    async with _dispatching(runtime, await _wired_email(app)):
        yield
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await db.disconnect()
    if telemetry:
        await asyncio.to_thread(telemetry.stop)


def _has_test_database(app: FastAPI) -> bool:
    """Whether a test has put its own database in the place of ours: it is the test's to prepare."""
    return db.session_dependency in app.dependency_overrides


async def _wired_email(app: FastAPI) -> SendsEmail | None:
    runtime = runtime_of(app)
    override = app.dependency_overrides.get(get_email_utils)
    if override is None:
        return runtime.email
    email = override()
    wired: SendsEmail | None = await email if isawaitable(email) else email
    return wired


@asynccontextmanager
async def _dispatching(runtime: Runtime, email: SendsEmail | None) -> AsyncIterator[None]:
    if email is None or not runtime.settings.outbox_in_app:
        yield
        return
    dispatcher = Dispatcher(db, email, runtime.settings)
    runtime.wake_dispatcher = dispatcher.wake
    running = asyncio.create_task(dispatcher.run())
    yield
    await dispatcher.finish(running)


def _check_email(settings: Settings, email: SendsEmail | None) -> None:
    if email is not None:
        return
    if settings.is_production:
        raise StartupRefused(
            "SMTP is not configured, so links would be handed to whoever asks: set SMTP_HOST and SMTP_FROM."
        )
    log.warning(
        "SMTP is not configured: activation links are in the answers, and links to reset a password or change an "
        "address are too only with AUTH_RETURN_TOKEN_IN_RESPONSE=true. Do not run like this in production."
    )


def _check_keys(ring: KeyRing, settings: Settings) -> None:
    try:
        keys = [*ring.access_keys, *ring.refresh_keys, *ring.encryption_keys]
    except (NoKeysError, OSError) as error:
        raise StartupRefused(f"The keys cannot be read: {error}") from None
    if not settings.is_production:
        return
    generated = [key.path for key in keys if key.is_generated]
    if generated:
        raise StartupRefused(
            f"{generated[0]} was made up for development: make keys with `python -m src keys rotate` in a folder of "
            "their own, and point JWT_KEYS_DIR to it."
        )
    _check_files([key.path for key in keys])


def _check_files(paths: Iterable[Path]) -> None:
    for path in paths:
        if who_else_may_open(path) == "Everyone":
            raise StartupRefused(f"Everyone on this machine may open {path}: {how_to_close(path)}.")


app = create_app()
if logging.getLogger("uvicorn").handlers:  # uvicorn loads us, and would print its lines in a form of its own
    dictConfig(get_settings().log_config)
