"""Who is asking, and what they may do: a person, another service, or whoever runs the command line."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from src.core.exceptions import ForbiddenException, InsufficientScopeError


class Scope(StrEnum):
    """What another service may be allowed to do (RFC 6749, section 3.3). An administrator may do all of it."""

    USERS_READ = "users:read"
    USERS_WRITE = "users:write"
    AUDIT_READ = "audit:read"


@dataclass(frozen=True, slots=True)
class Principal:
    """A person, and the session through which they ask."""

    user_id: UUID
    email: str
    is_admin: bool
    session_id: UUID


@dataclass(frozen=True, slots=True)
class ServiceClient:
    """Another service, and what the access token that it sent is good for."""

    client_id: UUID
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Operator:
    """Whoever runs `python -m src`. They hold the database itself, so nothing is refused them for lack of rights."""


Caller = Principal | ServiceClient | Operator


def may(caller: Caller, scope: Scope) -> bool:
    match caller:
        case Principal():
            return caller.is_admin
        case ServiceClient():
            return scope in caller.scopes
        case Operator():
            return True


def require(caller: Caller, scope: Scope) -> None:
    """Raises `ForbiddenException` for a person, `InsufficientScopeError` for a service, who may not do this."""
    if not may(caller, scope):
        raise InsufficientScopeError.for_scope(scope) if isinstance(caller, ServiceClient) else ForbiddenException
