"""What routes are given. `db` is the one way to the database: overriding `db.session_dependency` moves a whole app."""

from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import OAuth2, SecurityScopes
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.callers import Principal, Scope, ServiceClient, require
from src.core.exceptions import ForbiddenException, InvalidAccessTokenError, UnauthorizedException
from src.core.passwords import PasswordHasher
from src.core.settings import Settings, get_settings
from src.core.tokens import TokenSigner
from src.db.database import AsyncDatabaseManager
from src.db.repositories import ServiceClientRepository, SessionRepository
from src.email import SendsMail
from src.services import AccountService, Audit, ClientService, CredentialService, SessionService, UserService
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


def get_signer(request: Request) -> TokenSigner:
    signer: TokenSigner = request.app.state.signer
    return signer


SignerDep = Annotated[TokenSigner, Depends(get_signer)]


def get_client(request: Request) -> Client:
    """Where the request comes from; behind a proxy, as uvicorn's `--forwarded-allow-ips` lets the proxy say."""
    address = request.client.host if request.client else ""
    try:
        place = str(ip_address(address.partition("%")[0]))  # the zone of an IPv6 address may be any text
    except ValueError:  # a unix socket, or what somebody wrote into X-Forwarded-For
        place = None
    user_agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))
    return Client(place, user_agent[:255] or None)


ClientDep = Annotated[Client, Depends(get_client)]


def get_audit(session: SessionDep, client: ClientDep, signer: SignerDep) -> Audit:
    return Audit(session, origin=client.address, fingerprint=signer.fingerprint)


AuditDep = Annotated[Audit, Depends(get_audit)]


def get_accounts(
    session: SessionDep, settings: SettingsDep, passwords: PasswordHasherDep, outbox: OutboxDep, audit: AuditDep
) -> AccountService:
    return AccountService(session, settings=settings, passwords=passwords, outbox=outbox, audit=audit)


AccountsDep = Annotated[AccountService, Depends(get_accounts)]


def get_sessions(
    session: SessionDep,
    settings: SettingsDep,
    passwords: PasswordHasherDep,
    signer: SignerDep,
    outbox: OutboxDep,
    audit: AuditDep,
) -> SessionService:
    return SessionService(session, settings=settings, passwords=passwords, signer=signer, outbox=outbox, audit=audit)


SessionsDep = Annotated[SessionService, Depends(get_sessions)]


def get_credentials(
    session: SessionDep,
    settings: SettingsDep,
    passwords: PasswordHasherDep,
    outbox: OutboxDep,
    client: ClientDep,
    audit: AuditDep,
) -> CredentialService:
    return CredentialService(
        session, settings=settings, passwords=passwords, outbox=outbox, client_address=client.address, audit=audit
    )


CredentialsDep = Annotated[CredentialService, Depends(get_credentials)]


def get_users(session: SessionDep, settings: SettingsDep, outbox: OutboxDep, audit: AuditDep) -> UserService:
    return UserService(session, settings=settings, outbox=outbox, audit=audit)


UsersDep = Annotated[UserService, Depends(get_users)]


def get_clients(session: SessionDep, signer: SignerDep, audit: AuditDep) -> ClientService:
    return ClientService(session, signer=signer, audit=audit)


ClientsDep = Annotated[ClientService, Depends(get_clients)]


_SCOPES = {
    Scope.USERS_READ: "Read every user.",
    Scope.USERS_WRITE: "Invite, change and remove users who are no administrators.",
    Scope.AUDIT_READ: "Read the audit trail.",
}


_TOKEN_URL = "/auth/token"
_authorization = OAuth2(
    flows={
        "password": {"tokenUrl": _TOKEN_URL, "scopes": {}},
        "clientCredentials": {"tokenUrl": _TOKEN_URL, "scopes": {**_SCOPES}},
    },
    auto_error=False,
)


async def get_optional_caller(
    request: Request, header: Annotated[str | None, Depends(_authorization)], session: SessionDep, signer: SignerDep
) -> Principal | ServiceClient | None:
    """Who is asking; nobody, without a token. One that is not good is a 401, never silently a stranger (RFC 6750)."""
    if "authorization" not in request.headers:
        return None
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidAccessTokenError
    claims = signer.read_access(token)
    caller: Principal | ServiceClient | None
    if isinstance(claims, ServiceClient):
        caller = claims if await ServiceClientRepository(session).is_live(claims.client_id) else None
    else:
        caller = await SessionRepository(session).find_principal(claims.user_id, claims.session_id)
    await session.close()  # ends the read: on SQLite no writing transaction can follow it
    if caller is None:
        raise InvalidAccessTokenError
    return caller


OptionalCaller = Annotated[Principal | ServiceClient | None, Depends(get_optional_caller)]


def get_caller(caller: OptionalCaller) -> Principal | ServiceClient:
    if caller is None:
        raise UnauthorizedException
    return caller


def get_permitted_caller(
    caller: Annotated[Principal | ServiceClient, Depends(get_caller)], needed: SecurityScopes
) -> Principal | ServiceClient:
    """An administrator, or a service with the scopes that the route names."""
    for scope in needed.scopes:
        require(caller, Scope(scope))
    return caller


UsersReader = Annotated[Principal | ServiceClient, Security(get_permitted_caller, scopes=[Scope.USERS_READ])]
AuditReader = Annotated[Principal | ServiceClient, Security(get_permitted_caller, scopes=[Scope.AUDIT_READ])]
# Whoever has proved who they are: whether they may is for the service to say, which records it if they may not.
UsersWriter = Annotated[Principal | ServiceClient, Security(get_caller, scopes=[Scope.USERS_WRITE])]


def get_optional_user(caller: OptionalCaller) -> Principal | None:
    """A person, or nobody: what is personal is refused to a service."""
    if isinstance(caller, ServiceClient):
        raise ForbiddenException("This is for people: send the access token of somebody who has logged in.")
    return caller


OptionalUser = Annotated[Principal | None, Depends(get_optional_user)]


def get_current_user(user: OptionalUser) -> Principal:
    if user is None:
        raise UnauthorizedException
    return user


CurrentUser = Annotated[Principal, Depends(get_current_user)]
