"""One-time tokens: issued, looked at, and spent once."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, select

from src.core.tokens import hash_token, new_token
from src.db.base import utc_now
from src.db.models import TokenPurpose, UserModel, UserTokenModel
from src.db.repositories.base import BaseRepository


class UserTokenRepository(BaseRepository[UserTokenModel]):
    model = UserTokenModel

    async def issue(self, user_id: UUID, purpose: TokenPurpose, lifetime: timedelta) -> str:
        """A new token, which nobody can read again. Older ones stay good: otherwise a stranger who asks for links
        could lock a person out of theirs."""
        token = new_token()
        await self.add(
            UserTokenModel(
                user_id=user_id, purpose=purpose, token_hash=hash_token(token), expires_at=utc_now() + lifetime
            )
        )
        return token

    async def find_user(self, token: str, purpose: TokenPurpose) -> UserModel | None:
        """Whose token this is, if it can still be spent. Looking spends nothing."""
        query = (
            select(UserModel)
            .join(UserTokenModel, UserTokenModel.user_id == UserModel.id)
            .where(
                UserTokenModel.token_hash == hash_token(token),
                UserTokenModel.purpose == purpose,
                UserTokenModel.expires_at > utc_now(),
            )
        )
        return (await self._session.scalars(query)).one_or_none()

    async def spend(self, token: str, purpose: TokenPurpose) -> bool:
        """Spend the token, and end the others of its user and purpose. Of two who try at once, one is told true."""
        token_hash = hash_token(token)
        whose = select(UserTokenModel.user_id).where(
            UserTokenModel.token_hash == token_hash,
            UserTokenModel.purpose == purpose,
            UserTokenModel.expires_at > utc_now(),
        )
        statement = (
            delete(UserTokenModel)
            .where(UserTokenModel.user_id.in_(whose), UserTokenModel.purpose == purpose)
            .returning(UserTokenModel.token_hash)
        )
        return token_hash in (await self._session.scalars(statement)).all()
