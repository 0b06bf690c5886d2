"""The use cases. One public method is one use case is one transaction, and its commit is its last act."""

from src.services.accounts import AccountService
from src.services.credentials import CredentialService
from src.services.sessions import SessionService

__all__ = ["AccountService", "CredentialService", "SessionService"]
