"""Who is asking, and what they may do: a person, another service, or whoever runs the command line."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from src.core.exceptions import ForbiddenException, InsufficientScopeError
from src.core.users import UserRecord


class Scope(StrEnum):
    """What another service may be allowed to do (RFC 6749, section 3.3). An administrator may do all of it."""

    USERS_READ = "users:read"
    USERS_WRITE = "users:write"
    AUDIT_READ = "audit:read"
    TOKENS_INTROSPECT = "tokens:introspect"


@dataclass(frozen=True, slots=True)
class AuthenticatedUser:
    """A person, as they were when their access token was checked, and the session through which they ask."""

    user: UserRecord
    session_id: UUID
    authenticated_at: datetime  # when they last proved a password or a code in this session
    second_factor_at: datetime | None  # when they last proved a code, if ever

    @property
    def user_id(self) -> UUID:
        return self.user.id

    @property
    def email(self) -> str:
        return self.user.email

    @property
    def is_admin(self) -> bool:
        return self.user.is_admin


@dataclass(frozen=True, slots=True)
class AuthenticatedClient:
    """Another service, and what the access token that it sent is good for."""

    client_id: UUID
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Operator:
    """Whoever runs `python -m src`. They hold the database itself, so nothing is refused them for lack of rights."""


HttpCaller = AuthenticatedUser | AuthenticatedClient
Caller = HttpCaller | Operator


def may(caller: Caller, scope: Scope) -> bool:
    match caller:
        case AuthenticatedUser():
            return caller.is_admin
        case AuthenticatedClient():
            return scope in caller.scopes
        case Operator():
            return True


def require(caller: Caller, scope: Scope) -> None:
    """Raises `ForbiddenException` for a person, `InsufficientScopeError` for a service, who may not do this."""
    if not may(caller, scope):
        raise InsufficientScopeError.for_scope(scope) if isinstance(caller, AuthenticatedClient) else ForbiddenException
