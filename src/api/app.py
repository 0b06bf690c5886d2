"""The application: `uvicorn src.api.app:app`. Everything that is put together is put together here."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from src.api import errors, pages
from src.api.dependencies import db, get_email_utils
from src.api.errors import document
from src.api.middleware import BodyLimitMiddleware, DropQuery, ReadableStartup, RequestMiddleware, StartupRefused
from src.api.routers import accounts, audit_events, credentials, health, sessions, users, well_known
from src.core.exceptions import AppException, ServiceUnavailableException
from src.core.keys import KeyRing, NoKeysError
from src.core.passwords import HashPool
from src.core.settings import Settings, get_settings
from src.core.tokens import TokenSigner
from src.db.migrations import DatabaseNotReadyError, prepare
from src.email import EmailUtils, SendsMail
from src.services.outbox import Dispatcher
from src.services.purge import purge_quietly

__all__ = ["app", "create_app", "db"]

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024

DESCRIPTION = """
Owns user accounts: people sign up, log in, recover and leave; other services verify its tokens and, with credentials
of their own, read and change users. A route names the scope that a service needs for it; administrators need none.

Every error, of every kind, is `{detail, code, details}`: `detail` is for people, `code` for programs.
"""
TAGS = [
    {"name": "Accounts", "description": "Sign up and prove the address."},
    {"name": "Sessions", "description": "Log in, stay logged in, log out."},
    {"name": "My account", "description": "Change, recover, leave."},
    {"name": "Users", "description": "What is known of users and to whom, and what administrators and services do."},
    {"name": "Audit", "description": "What has happened: every act that matters to security, done or refused."},
    {"name": "Discovery", "description": "What other services need to verify access tokens by themselves."},
    {"name": "Health", "description": "For orchestrators and load balancers."},
]


def create_app(settings: Settings | None = None) -> FastAPI:
    """A new application on the process's database, `db`. It answers without its lifespan too, as tests need it.

    The database is DATABASE_URL's, whatever `settings` say: to move an application, override `db.session_dependency`.
    """
    app = FastAPI(
        title="User and auth service",
        description=DESCRIPTION,
        version="0.1.0",
        openapi_tags=TAGS,
        lifespan=_lifespan,
        redirect_slashes=False,  # the redirect would be built from the request's Host header
        responses=document(AppException, ServiceUnavailableException),
    )
    configure(app, settings or get_settings())
    app.add_middleware(BodyLimitMiddleware, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(RequestMiddleware)
    app.add_middleware(ReadableStartup)
    errors.install(app)
    for module in (accounts, sessions, credentials, users, audit_events, well_known, health, pages):
        app.include_router(module.router)
    app.add_api_route("/", _home, include_in_schema=False)
    logging.getLogger("uvicorn.access").addFilter(_drop_query)
    logging.getLogger("uvicorn.asgi").setLevel(logging.WARNING)  # at its level "trace" it prints queries, and so tokens
    return app


def configure(app: FastAPI, settings: Settings) -> None:
    """Give an application its settings, and what is made from them once."""
    app.state.settings = settings
    app.state.hash_pool = HashPool(threads=settings.auth_hash_threads, queue_size=settings.auth_hash_queue_size)
    app.state.email = EmailUtils.from_settings(settings)
    app.state.wake_dispatcher = _nobody_to_wake
    app.state.signer = TokenSigner.from_settings(settings)


_drop_query = DropQuery()


async def _home() -> RedirectResponse:
    return RedirectResponse("/docs")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(name)s: %(message)s")
    settings: Settings = app.state.settings
    if db.session_dependency in app.dependency_overrides:  # a test's database is the test's to prepare
        yield
        return
    email = _wired_email(app)
    _look_at_mail(settings, email)
    _look_at_keys(app.state.signer.keys, settings)
    await _prepare_database(settings)
    purging = asyncio.create_task(purge_quietly(db, settings))
    async with _dispatching(app, email, settings):
        yield
    purging.cancel()
    await asyncio.gather(purging, return_exceptions=True)
    await db.disconnect()


def _wired_email(app: FastAPI) -> SendsMail | None:
    override = app.dependency_overrides.get(get_email_utils)
    email: SendsMail | None = override() if override else app.state.email
    return email


def _nobody_to_wake() -> None:
    """Without a dispatcher in this process, mail is found by the polling of another."""


@asynccontextmanager
async def _dispatching(app: FastAPI, email: SendsMail | None, settings: Settings) -> AsyncIterator[None]:
    if email is None or not settings.outbox_in_app:
        yield
        return
    dispatcher = Dispatcher(db, email, settings)
    app.state.wake_dispatcher = dispatcher.wake
    running = asyncio.create_task(dispatcher.run())
    yield
    await dispatcher.finish(running)


def _look_at_mail(settings: Settings, email: SendsMail | None) -> None:
    if email is not None:
        return
    if settings.is_production:
        raise StartupRefused(
            "Nothing carries mail, so links would be handed to whoever asks: set SMTP_HOST and SMTP_FROM."
        )
    log.warning(
        "Nothing carries mail: activation links are in the answers, and links to reset a password or change an address "
        "are too only with AUTH_RETURN_TOKEN_IN_RESPONSE=true. Do not run like this in production."
    )


def _look_at_keys(keys: KeyRing, settings: Settings) -> None:
    try:
        generated = [key.path for key in (*keys.access_keys, *keys.refresh_keys) if key.is_generated]
    except (NoKeysError, OSError, ValueError) as error:
        raise StartupRefused(f"The keys that sign tokens cannot be read: {error}") from None
    if settings.is_production and generated:
        raise StartupRefused(
            f"{generated[0]} was made up for development: make keys with `python -m src keys rotate` in a folder of "
            "their own, and point JWT_KEYS_DIR to it."
        )


async def _prepare_database(settings: Settings) -> None:
    try:
        await prepare(db, auto_migrate=settings.database_auto_migrate)
    except DatabaseNotReadyError as refusal:
        raise StartupRefused(str(refusal)) from None


app = create_app()
