"""What is stored, and how it is reached."""

from src.db.base import BaseModel
from src.db.database import AsyncDatabaseManager
from src.db.models import BaseUserModel

__all__ = ["AsyncDatabaseManager", "BaseModel", "BaseUserModel"]
