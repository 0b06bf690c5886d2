"""The use cases. One public method is one use case is one transaction, and its commit is its last step."""

from src.services.accounts import AccountService
from src.services.clients import ClientService
from src.services.context import Context, Runtime
from src.services.credentials import CredentialService
from src.services.keys import KeyService
from src.services.second_factor import SecondFactorService
from src.services.sessions import SessionService
from src.services.users import UserService

__all__ = [
    "AccountService",
    "ClientService",
    "Context",
    "CredentialService",
    "KeyService",
    "Runtime",
    "SecondFactorService",
    "SessionService",
    "UserService",
]
