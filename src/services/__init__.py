"""The use cases. One public method is one use case is one transaction, and its commit is its last act."""

from src.services.accounts import AccountService

__all__ = ["AccountService"]
