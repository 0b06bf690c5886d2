"""`/api/users`: what is known of users, and to whom."""

from uuid import UUID

from fastapi import APIRouter

from src.api.dependencies import OptionalUser, SessionDep
from src.api.errors import document
from src.api.schemas import PublicProfile, UserRecord
from src.core.exceptions import InvalidAccessTokenError, UserNotFoundError, ValidationException
from src.db.repositories import UserRepository

router = APIRouter(prefix="/api/users", tags=["Users"])


@router.get("/{user_id}", responses=document(ValidationException, InvalidAccessTokenError, UserNotFoundError))
async def read_user(user_id: UUID, session: SessionDep, caller: OptionalUser) -> UserRecord | PublicProfile:
    """A user: the whole record for themselves and for administrators, the public profile for anyone else.

    No token is needed for the public profile; one that is not valid is refused all the same.
    """
    record = await UserRepository(session).get_record(user_id)
    if caller and (caller.user_id == user_id or caller.is_admin):
        return UserRecord.model_validate(record)
    return PublicProfile.model_validate(record)
