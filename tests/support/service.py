"""The application as the tests speak to it, and all that they know of how it is put together."""

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import fastapi.dependencies.utils
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from httpx import ASGITransport, AsyncClient

from src.api.app import create_app
from src.api.app import db as production_db
from src.api.dependencies import get_email_utils, runtime_of
from src.core.hash_pool import HashPool
from src.core.limits import Rate
from src.core.settings import Settings
from src.core.tokens import TokenSigner
from src.db import AsyncDatabaseManager
from src.db.models import EventKind
from src.db.unit_of_work import open_unit_of_work
from src.email import Message
from src.services import AccountService, ClientService, Context, KeyService, Runtime
from src.services.outbox import Dispatcher
from tests.support.databases import ReusingDatabase
from tests.support.documented import require_documented

# For tests that ask for more emails than people do.
MANY_EMAILS = {
    "rate_limit_emails_per_address_and_origin": Rate(9999, 1),
    "rate_limit_emails_per_address": Rate(9999, 1),
}
METHODS = ("get", "post", "put", "patch", "delete")  # those of the operations in the OpenAPI document


def make_settings(**overrides: Any) -> Settings:
    values: dict[str, Any] = {"app_env": "test", "auth_bcrypt_rounds": 4} | overrides
    assert values.keys() <= Settings.model_fields.keys()
    return Settings(**values)


def make_production_settings(**overrides: Any) -> Settings:
    """Settings that production does not refuse."""
    values: dict[str, Any] = {
        "app_env": "production",
        "auth_bcrypt_rounds": 10,
        "server_public_url": "https://accounts.example.com",
    }
    return make_settings(**values | overrides)


_remembered_settings = lru_cache(make_settings)  # they are frozen; reading the environment anew takes milliseconds


@dataclass
class Mailbox:
    """Where emails arrive when it is wired in; `failure` is raised instead, if there is one."""

    messages: list[Message] = field(default_factory=list)
    failure: Exception | None = None

    async def send(self, message: Message) -> None:
        if self.failure:
            raise self.failure
        self.messages.append(message)

    def token(self, index: int = -1) -> str:
        """The token of the link in a message."""
        return self.messages[index].text.partition("token=")[2].split()[0]


@dataclass
class Service:
    """An application and a client of it. `database` is the application's way into the database."""

    app: FastAPI
    client: AsyncClient
    database: AsyncDatabaseManager

    @property
    def settings(self) -> Settings:
        return runtime_of(self.app).settings

    @property
    def signer(self) -> TokenSigner:
        return signer_of(self.app)

    @property
    def anonymous_failures(self) -> Counter[tuple[EventKind, str]]:
        return runtime_of(self.app).anonymous_failures

    @property
    def hash_pool(self) -> HashPool:
        return runtime_of(self.app).hash_pool

    @hash_pool.setter
    def hash_pool(self, pool: HashPool) -> None:
        runtime_of(self.app).hash_pool = pool


@dataclass
class MailingService(Service):
    """A service that sends emails; they are sent after each answer, as the dispatcher of a running service would."""

    mailbox: Mailbox
    dispatcher: Dispatcher

    def hold_emails(self) -> None:
        """From now on emails wait until the test dispatches them."""
        self.client.event_hooks["response"].clear()


StartService = Callable[..., Awaitable[Service]]
StartMailingService = Callable[..., Awaitable[MailingService]]


# --- applications ---

_read_dependency = fastapi.dependencies.utils.get_dependant
_dependencies: dict[object, Dependant] = {}


def _remember_dependency(**options: Any) -> Dependant:
    """Where anything is overridden, FastAPI reads the signature of every dependency for every request: a tenth of the
    time that the tests would take."""
    key = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items())
    if key not in _dependencies:
        _dependencies[key] = _read_dependency(**options)
    return _dependencies[key]


fastapi.dependencies.utils.get_dependant = _remember_dependency

_idle_apps: defaultdict[object, list[FastAPI]] = defaultdict(list)


@contextmanager
def borrow_app(settings: Settings) -> Iterator[FastAPI]:
    """An application with these settings. They are built once and used again: FastAPI takes its time over routes."""
    idle_apps = _idle_apps[_built_into_app(settings)]
    app = idle_apps.pop() if idle_apps else create_app(settings)
    app.state.runtime = Runtime.from_settings(settings)
    runtime_of(app).answer_step_seconds = 0  # tests do not wait
    yield app
    app.dependency_overrides.clear()
    idle_apps.append(app)


def _built_into_app(settings: Settings) -> object:
    """What the middlewares of an application have kept of its settings."""
    return settings.is_https, settings.cors_allowed_origins, settings.auth_refresh_cookie, settings.server_max_requests


def signer_of(app: FastAPI) -> TokenSigner:
    return runtime_of(app).signer


def use_database(app: FastAPI, database: AsyncDatabaseManager) -> None:
    app.dependency_overrides[production_db.session_dependency] = database.session_dependency


def use_mailbox(app: FastAPI, mailbox: Mailbox) -> None:
    async def get_mailbox() -> Mailbox:
        return mailbox

    app.dependency_overrides[get_email_utils] = get_mailbox


@asynccontextmanager
async def connect(app: FastAPI, **options: Any) -> AsyncGenerator[AsyncClient, None]:
    """A client for which an unforeseen error is an answer, as it is for others. It fails on an undocumented answer."""
    transport = ASGITransport(app=app, raise_app_exceptions=False, **options)
    hooks = {"response": [require_documented]}
    async with AsyncClient(transport=transport, base_url="http://test", event_hooks=hooks) as client:
        yield client


@asynccontextmanager
async def reached_from(service: Service, address: str) -> AsyncGenerator[Service, None]:
    """The same service, as somebody at another address reaches it."""
    async with connect(service.app, client=(address, 50_000)) as client:
        yield Service(service.app, client, service.database)


@asynccontextmanager
async def serve(database: AsyncDatabaseManager, **settings: Any) -> AsyncGenerator[Service, None]:
    """The service on a database that the caller prepares and leaves."""
    with borrow_app(_remembered_settings(**settings)) as app:
        use_database(app, database)
        async with connect(app) as client:
            yield Service(app, client, database)


@dataclass
class Starter:
    """Starts services on one database, each with settings and a way into the database of its own."""

    database_url: str
    stack: AsyncExitStack

    async def start(self, **settings: Any) -> Service:
        return await self.stack.enter_async_context(serve(self._open_database(), **settings))

    async def start_mailing(self, **settings: Any) -> MailingService:
        service, mailbox = await self.start(**settings), Mailbox()
        use_mailbox(service.app, mailbox)
        dispatcher = Dispatcher(self._open_database(), mailbox, service.settings)
        service.client.event_hooks["response"].append(lambda _response: dispatcher.dispatch_due())
        return MailingService(service.app, service.client, service.database, mailbox, dispatcher)

    def _open_database(self) -> AsyncDatabaseManager:
        database = ReusingDatabase(self.database_url)
        self.stack.push_async_callback(database.disconnect)
        return database


# --- what the command line does, without the command line ---


@asynccontextmanager
async def operators_context(service: Service) -> AsyncGenerator[Context, None]:
    async with open_unit_of_work(service.database) as uow:
        yield Context.new(runtime_of(service.app), uow, email=None)


@asynccontextmanager
async def accounts_of(service: Service) -> AsyncGenerator[AccountService, None]:
    """What the command line does about accounts: `async with accounts_of(service) as accounts`."""
    async with operators_context(service) as context:
        yield AccountService(context)


@asynccontextmanager
async def keys_of(service: Service) -> AsyncGenerator[KeyService, None]:
    """What the command line records of keys: `async with keys_of(service) as keys`."""
    async with operators_context(service) as context:
        yield KeyService(context)


@asynccontextmanager
async def clients_of(service: Service) -> AsyncGenerator[ClientService, None]:
    """What the command line does about other services: `async with clients_of(service) as clients`."""
    async with operators_context(service) as context:
        yield ClientService(context)
