"""What routes are given. `db` is the one way to the database: overriding `db.session_dependency` moves a whole app."""

from collections.abc import Callable
from typing import Annotated

from fastapi import BackgroundTasks, Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.passwords import PasswordHasher
from src.core.settings import Settings, get_settings
from src.db.database import AsyncDatabaseManager
from src.email import EmailUtils, Message
from src.email.delivery import deliver
from src.services import AccountService

db = AsyncDatabaseManager(get_settings().database_url)

# Function scope closes the session before the answer is sent. With the default one, what fails after the `yield` would
# fail behind a 2xx that the client has already seen.
SessionDep = Annotated[AsyncSession, Depends(db.session_dependency, scope="function")]


def get_app_settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


SettingsDep = Annotated[Settings, Depends(get_app_settings)]


def get_email_utils() -> EmailUtils | None:
    """What carries mail; `None` means that links travel in the answers. Override it to wire mail in."""
    return None


EmailDep = Annotated[EmailUtils | None, Depends(get_email_utils)]


def get_post(background: BackgroundTasks, email: EmailDep) -> Callable[[Message], None] | None:
    """Mails leave after the answer, so that its time does not tell to whom one goes."""
    return None if email is None else lambda message: background.add_task(deliver, email, message)


PostDep = Annotated[Callable[[Message], None] | None, Depends(get_post)]


def get_password_hasher(request: Request, settings: SettingsDep) -> PasswordHasher:
    return PasswordHasher(request.app.state.hash_pool, settings.auth_bcrypt_rounds, request.is_disconnected)


PasswordHasherDep = Annotated[PasswordHasher, Depends(get_password_hasher)]


def get_accounts(
    session: SessionDep, settings: SettingsDep, passwords: PasswordHasherDep, post: PostDep
) -> AccountService:
    return AccountService(session, settings=settings, passwords=passwords, post=post)


AccountsDep = Annotated[AccountService, Depends(get_accounts)]


def get_client_address(request: Request) -> str | None:
    """Where the request comes from; behind a proxy, as uvicorn's `--forwarded-allow-ips` lets the proxy say."""
    return request.client.host if request.client else None


ClientAddress = Annotated[str | None, Depends(get_client_address)]
