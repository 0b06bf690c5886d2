"""What routes are given. `db` is the one way to the database: overriding `db.session_dependency` moves a whole app."""

from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.exceptions import ForbiddenException, InvalidAccessTokenError, UnauthorizedException
from src.core.passwords import PasswordHasher
from src.core.settings import Settings, get_settings
from src.core.tokens import TokenSigner
from src.db.database import AsyncDatabaseManager
from src.db.repositories import Principal, SessionRepository
from src.email import SendsMail
from src.services import AccountService, CredentialService, SessionService
from src.services.outbox import Outbox
from src.services.sessions import Client

db = AsyncDatabaseManager(get_settings().database_url)

# Function scope closes the session before the answer is sent. With the default one, what fails after the `yield` would
# fail behind a 2xx that the client has already seen.
SessionDep = Annotated[AsyncSession, Depends(db.session_dependency, scope="function")]


def get_app_settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


SettingsDep = Annotated[Settings, Depends(get_app_settings)]


def get_email_utils(request: Request) -> SendsMail | None:
    """What carries mail: SMTP, where SMTP_HOST is set. `None` means that links travel in the answers. Override it to
    wire in another."""
    email: SendsMail | None = request.app.state.email
    return email


EmailDep = Annotated[SendsMail | None, Depends(get_email_utils)]


def get_outbox(request: Request, session: SessionDep, settings: SettingsDep, email: EmailDep) -> Outbox | None:
    if email is None:
        return None
    return Outbox(session, limit_per_hour=settings.email_limit_per_hour, wake=request.app.state.wake_dispatcher)


OutboxDep = Annotated[Outbox | None, Depends(get_outbox)]


def get_password_hasher(request: Request, settings: SettingsDep) -> PasswordHasher:
    return PasswordHasher(request.app.state.hash_pool, settings.auth_bcrypt_rounds, request.is_disconnected)


PasswordHasherDep = Annotated[PasswordHasher, Depends(get_password_hasher)]


def get_accounts(
    session: SessionDep, settings: SettingsDep, passwords: PasswordHasherDep, outbox: OutboxDep
) -> AccountService:
    return AccountService(session, settings=settings, passwords=passwords, outbox=outbox)


AccountsDep = Annotated[AccountService, Depends(get_accounts)]


def get_signer(request: Request) -> TokenSigner:
    signer: TokenSigner = request.app.state.signer
    return signer


SignerDep = Annotated[TokenSigner, Depends(get_signer)]


def get_sessions(
    session: SessionDep, settings: SettingsDep, passwords: PasswordHasherDep, signer: SignerDep, outbox: OutboxDep
) -> SessionService:
    return SessionService(session, settings=settings, passwords=passwords, signer=signer, outbox=outbox)


SessionsDep = Annotated[SessionService, Depends(get_sessions)]


def get_client(request: Request) -> Client:
    """Where the request comes from; behind a proxy, as uvicorn's `--forwarded-allow-ips` lets the proxy say."""
    address = request.client.host if request.client else ""
    try:
        place = str(ip_address(address))
    except ValueError:  # a unix socket, or what somebody wrote into X-Forwarded-For
        place = None
    user_agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))
    return Client(place, user_agent[:255] or None)


ClientDep = Annotated[Client, Depends(get_client)]


def get_credentials(
    session: SessionDep, settings: SettingsDep, passwords: PasswordHasherDep, outbox: OutboxDep, client: ClientDep
) -> CredentialService:
    return CredentialService(
        session, settings=settings, passwords=passwords, outbox=outbox, client_address=client.address
    )


CredentialsDep = Annotated[CredentialService, Depends(get_credentials)]


_bearer = OAuth2PasswordBearer("/auth/token", auto_error=False)


async def get_optional_user(
    request: Request, token: Annotated[str | None, Depends(_bearer)], session: SessionDep, signer: SignerDep
) -> Principal | None:
    """Who is asking; nobody, without a token. One that is not good is a 401, never silently a stranger (RFC 6750)."""
    if token is None:
        if "authorization" in request.headers:
            raise InvalidAccessTokenError
        return None
    claims = signer.read_access(token)
    principal = await SessionRepository(session).find_principal(claims.user_id, claims.session_id)
    await session.close()  # ends the read: on SQLite no writing transaction can follow it
    if principal is None:
        raise InvalidAccessTokenError
    return principal


OptionalUser = Annotated[Principal | None, Depends(get_optional_user)]


def get_current_user(principal: OptionalUser) -> Principal:
    if principal is None:
        raise UnauthorizedException
    return principal


CurrentUser = Annotated[Principal, Depends(get_current_user)]


def get_admin_user(principal: CurrentUser) -> Principal:
    if not principal.is_admin:
        raise ForbiddenException
    return principal


AdminUser = Annotated[Principal, Depends(get_admin_user)]
