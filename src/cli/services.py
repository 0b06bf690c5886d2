"""The use cases as the command line has them. Whoever runs it is the operator; what is refused ends a command."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from src.cli.output import fail, in_database
from src.core.exceptions import AppException
from src.core.passwords import HashPool, PasswordHasher
from src.core.settings import Settings, get_settings
from src.core.tokens import TokenSigner
from src.db.database import AsyncDatabaseManager
from src.services import AccountService, Audit, ClientService, UserService
from src.services.outbox import Outbox

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Services:
    session: AsyncSession  # for plain reads
    accounts: AccountService
    users: UserService
    clients: ClientService


def with_services(work: Callable[[Services], Awaitable[Result]]) -> Result:
    """What the work makes of the services, on the database of DATABASE_URL.

    Ends the command with its sentence if a service refuses. Mail is queued where SMTP_HOST is set: a running service or
    worker sends it.
    """

    async def run(database: AsyncDatabaseManager) -> Result:
        async with database.session() as session:
            return await work(_build(session, get_settings()))

    try:
        return in_database(run)
    except AppException as refusal:
        fail(_sentence(refusal))


def _build(session: AsyncSession, settings: Settings) -> Services:
    signer = TokenSigner.from_settings(settings)
    audit = Audit(session, origin=None, fingerprint=signer.fingerprint)
    outbox = None
    if settings.smtp_host:
        outbox = Outbox(session, limit_per_hour=settings.email_limit_per_hour, wake=lambda: None)
    passwords = PasswordHasher(HashPool(threads=1, queue_size=1), settings.auth_bcrypt_rounds)
    return Services(
        session,
        AccountService(session, settings=settings, passwords=passwords, outbox=outbox, audit=audit),
        UserService(session, settings=settings, outbox=outbox, audit=audit),
        ClientService(session, signer=signer, audit=audit),
    )


def _sentence(refusal: AppException) -> str:
    """What is wrong with which field, where it is known."""
    fields = [f"The {field['field']} {field['reason']}." for field in refusal.details.get("fields", [])]
    return " ".join(fields) or refusal.detail
