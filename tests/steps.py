"""Steps that many tests take before the one that they are about."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from httpx import Response
from sqlalchemy import or_, update
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.callers import Scope
from src.core.passwords import UNUSABLE_PASSWORD, HashPool
from src.db import AsyncDatabaseManager, BaseModel
from src.db.base import utc_now
from src.db.models import AuditEventModel, UserModel, UserTokenModel
from src.db.unit_of_work import open_unit_of_work
from src.services import AccountService, ClientService, Context
from src.services.clients import ClientSecret
from tests.conftest import Service

Result = TypeVar("Result")

PASSWORD = "strong-pass-12-chars"


async def post_sign_up(service: Service, email: str = "ana@example.com", **body: Any) -> Response:
    return await service.client.post("/auth/signup", json={"email": email, "password": PASSWORD} | body)


async def sign_up(service: Service, email: str = "ana@example.com", **body: Any) -> dict[str, Any]:
    response = await post_sign_up(service, email, **body)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def activate(service: Service, token: str) -> Response:
    return await service.client.post("/auth/activate", json={"token": token})


async def create_account(service: Service, email: str = "ana@example.com", **body: Any) -> str:
    """Sign up and follow the link; the id of the active user."""
    answer = await sign_up(service, email, **body)
    token = service.mailbox.token() if service.mailbox else token_of(answer["activation_url"])
    response = await activate(service, token)
    assert response.status_code == 200, response.text
    return str(answer["user_id"])


async def add_users(database: AsyncDatabaseManager, *people: dict[str, Any]) -> list[str]:
    """Insert accounts that nobody can log in to, where the values do not say otherwise; their ids."""
    users = [UserModel(**({"hashed_password": UNUSABLE_PASSWORD} | each)) for each in people]
    async with database.session() as session:
        session.add_all(users)
        await session.commit()
    return [str(user.id) for user in users]


async def rows_about_people(session: AsyncSession) -> list[Any]:
    """Every row of every table; of the audit trail, which tells for good what was done, only what tells of whom."""
    rows: list[Any] = []
    for table in BaseModel.metadata.sorted_tables:
        if table is AuditEventModel.__table__:
            event = table.c
            about = or_(*(each.is_not(None) for each in (event.user_id, event.actor_id, event.origin)))
            rows += (await session.execute(table.select().where(about))).all()
        else:
            rows += (await session.execute(table.select())).all()
    return rows


def token_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["token"][0]


async def expire_links(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        await session.execute(update(UserTokenModel).values(expires_at=utc_now() - timedelta(seconds=1)))
        await session.commit()


class CountingPool(HashPool):
    """The real pool, which also counts."""

    count = 0

    async def run(self, work: Callable[[], Result], **options: Any) -> Result:
        self.count += 1
        return await super().run(work, **options)


def count_hashes(service: Service) -> CountingPool:
    pool = service.app.state.runtime.hash_pool = CountingPool(threads=2, queue_size=128)
    return pool


async def nobody_is_gone() -> bool:
    return False


async def hold(pool: CountingPool, gate: Awaitable[None], *, jobs: int) -> list[asyncio.Task[None]]:
    """Fill the pool with jobs that wait for the gate."""

    async def wait_at_gate() -> bool:
        await asyncio.shield(gate)
        return False

    tasks = [
        asyncio.create_task(pool.run(lambda: None, queue_share=1.0, is_disconnected=wait_at_gate)) for _ in range(jobs)
    ]
    await wait_until(lambda: pool.waiting >= jobs - 2)
    return tasks


async def wait_until(condition: Callable[[], bool]) -> None:
    """Let others run until the condition holds; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@dataclass(frozen=True)
class LoggedIn:
    """What a log-in gave, and the header that goes with it."""

    access_token: str
    refresh_token: str
    user_id: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}


def read_tokens(response: Response) -> LoggedIn:
    assert response.status_code == 200, response.text
    body = response.json()
    return LoggedIn(body["access_token"], body["refresh_token"], body["user_id"])


async def post_log_in(
    service: Service, email: str = "ana@example.com", password: str = PASSWORD, **headers: str
) -> Response:
    return await service.client.post("/auth/login", json={"email": email, "password": password}, headers=headers)


async def log_in(service: Service, email: str = "ana@example.com", password: str = PASSWORD) -> LoggedIn:
    return read_tokens(await post_log_in(service, email, password))


def refusal(response: Response) -> tuple[int, str, list[str]]:
    """The status, the code, and the fields that are named."""
    body = response.json()
    return response.status_code, body["code"], [field["field"] for field in body["details"].get("fields", [])]


async def refresh(service: Service, refresh_token: str) -> Response:
    return await service.client.post("/auth/refresh", json={"refresh_token": refresh_token})


async def me(service: Service, who: LoggedIn) -> Response:
    return await service.client.get("/auth/me", headers=who.bearer)


@asynccontextmanager
async def operators_context(service: Service) -> AsyncGenerator[Context, None]:
    """What the command line works with: `async with operators_context(service) as context`."""
    async with open_unit_of_work(service.database) as uow:
        yield Context.new(service.app.state.runtime, uow, email=None)


@asynccontextmanager
async def accounts_of(service: Service) -> AsyncGenerator[AccountService, None]:
    """What the command line does about accounts: `async with accounts_of(service) as accounts`."""
    async with operators_context(service) as context:
        yield AccountService(context)


async def create_admin(service: Service, email: str = "admin@example.com") -> LoggedIn:
    """An active administrator, made as the command line does it, and logged in."""
    async with accounts_of(service) as accounts:
        await accounts.create_admin(email=email, password=PASSWORD)
    return await log_in(service, email)


@asynccontextmanager
async def clients_of(service: Service) -> AsyncGenerator[ClientService, None]:
    """What the command line does about other services: `async with clients_of(service) as clients`."""
    async with operators_context(service) as context:
        yield ClientService(context)


async def create_client(service: Service, *scopes: str, name: str = "reports") -> ClientSecret:
    """Introduce another service: `await create_client(service, "users:read")`."""
    async with clients_of(service) as clients:
        return await clients.create(name=name, scopes=[Scope(scope) for scope in scopes])


async def post_client_credentials(service: Service, client: ClientSecret, **form: str) -> Response:
    credentials = {"client_id": str(client.client_id), "client_secret": client.client_secret}
    return await service.client.post("/auth/token", data={"grant_type": "client_credentials"} | credentials | form)


async def service_token(service: Service, client: ClientSecret) -> str:
    """An access token for all the scopes of another service."""
    response = await post_client_credentials(service, client)
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def start_waiting(pool: CountingPool, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """Start a request and let it run until it waits to hash."""
    waiting = pool.waiting
    task = asyncio.create_task(work)
    await wait_until(lambda: pool.waiting > waiting or task.done())
    assert not task.done()
    return task
