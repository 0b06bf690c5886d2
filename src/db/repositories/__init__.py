"""What is asked of the database. Repositories flush and never commit: the service decides what lasts."""

from src.db.repositories.base import BaseRepository
from src.db.repositories.outbox import OutboxRepository
from src.db.repositories.sessions import Principal, SessionRepository
from src.db.repositories.user_tokens import EmailChange, UserTokenRepository
from src.db.repositories.users import UserRepository

__all__ = [
    "BaseRepository",
    "EmailChange",
    "OutboxRepository",
    "Principal",
    "SessionRepository",
    "UserRepository",
    "UserTokenRepository",
]
