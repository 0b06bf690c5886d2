"""What is asked of the database. Repositories flush and never commit: the service decides what lasts."""

from src.db.repositories.audit_events import AuditEventRepository, EventFilter
from src.db.repositories.base import BaseRepository, Condition
from src.db.repositories.outbox import OutboxRepository
from src.db.repositories.rate_limits import RateLimitRepository
from src.db.repositories.second_factors import SecondFactorRepository
from src.db.repositories.service_clients import ServiceClientRepository
from src.db.repositories.sessions import RotatedSession, SessionRepository
from src.db.repositories.user_tokens import EmailChange, UserTokenRepository
from src.db.repositories.users import Order, UserFilter, UserRepository

__all__ = [
    "AuditEventRepository",
    "BaseRepository",
    "Condition",
    "EmailChange",
    "EventFilter",
    "Order",
    "OutboxRepository",
    "RateLimitRepository",
    "RotatedSession",
    "SecondFactorRepository",
    "ServiceClientRepository",
    "SessionRepository",
    "UserFilter",
    "UserRepository",
    "UserTokenRepository",
]
