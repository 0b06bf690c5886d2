"""`/api/users`: what others may know of a user."""

from uuid import UUID

from fastapi import APIRouter

from src.api.dependencies import SessionDep
from src.api.errors import document
from src.api.schemas import PublicProfile
from src.core.exceptions import UserNotFoundError, ValidationException
from src.db.repositories import UserRepository

router = APIRouter(prefix="/api/users", tags=["Users"])


@router.get("/{user_id}", responses=document(ValidationException, UserNotFoundError))
async def read_user(user_id: UUID, session: SessionDep) -> PublicProfile:
    """The public profile of a user; no token is needed."""
    return PublicProfile.model_validate(await UserRepository(session).get_public_profile(user_id))
