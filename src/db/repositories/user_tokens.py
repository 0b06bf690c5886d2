"""One-time tokens: issued, read, and consumed once."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, delete, select, update

from src.core.kinds import TokenPurpose
from src.core.tokens import hash_token, new_token
from src.db.base import utc_now
from src.db.models import UserModel, UserTokenModel
from src.db.repositories.base import BaseRepository, Condition

_MAX_FAILURES = 5


@dataclass(frozen=True, slots=True)
class EmailChange:
    """The address that a link would bring to whom, and the session that asked for it."""

    user_id: UUID
    new_email: str
    session_id: UUID | None
    issued_at: datetime


class UserTokenRepository(BaseRepository[UserTokenModel]):
    model = UserTokenModel

    async def issue(
        self,
        user_id: UUID,
        purpose: TokenPurpose,
        *,
        expires_at: datetime,
        new_email: str | None = None,
        session_id: UUID | None = None,
    ) -> str:
        """A new token, which nobody can read again. Older ones stay good: otherwise a stranger who asks for links
        could lock a person out of theirs."""
        token = new_token()
        row = UserTokenModel(
            user_id=user_id,
            purpose=purpose,
            token_hash=hash_token(token),
            expires_at=expires_at,
            new_email=new_email,
            session_id=session_id,
        )
        await self.add(row)
        return token

    async def find_user(self, token: str, purpose: TokenPurpose) -> UserModel | None:
        """Whose token this is, if it can still be used. Reading consumes nothing."""
        query = (
            select(UserModel)
            .join(UserTokenModel, UserTokenModel.user_id == UserModel.id)
            .where(*_is_usable(token, purpose))
        )
        return (await self._session.scalars(query)).one_or_none()

    async def find_email_change(self, token: str, purpose: TokenPurpose) -> EmailChange | None:
        """What the token would change, if it can still be used."""
        query = select(
            UserTokenModel.user_id, UserTokenModel.new_email, UserTokenModel.session_id, UserTokenModel.created_at
        ).where(*_is_usable(token, purpose))
        row = (await self._session.execute(query)).one_or_none()
        return None if row is None else EmailChange(row.user_id, row.new_email, row.session_id, row.created_at)

    async def count_failure(self, token: str, purpose: TokenPurpose) -> None:
        """Count a wrong code that came with the token. The fifth ends it."""
        await self._count_changed(
            update(UserTokenModel).where(*_is_usable(token, purpose)).values(failures=UserTokenModel.failures + 1)
        )

    async def consume(self, token: str, purpose: TokenPurpose) -> bool:
        """Use the token up, and the others of its user and purpose. Of two who try at once, one is told true.

        Undoing an e-mail change ends later undoings alone: a thief who moves an account twice, and then undoes their
        own second move, must not end the owner's link.
        """
        is_usable = _is_usable(token, purpose)
        whose = select(UserTokenModel.user_id).where(*is_usable)
        statement = delete(UserTokenModel).where(UserTokenModel.user_id.in_(whose), UserTokenModel.purpose == purpose)
        if purpose is TokenPurpose.EMAIL_REVERT:
            # Ids are in the order of time.
            consumed = select(UserTokenModel.id).where(*is_usable).scalar_subquery()
            statement = statement.where(UserTokenModel.id >= consumed)
        ended = await self._session.scalars(statement.returning(UserTokenModel.token_hash))
        return hash_token(token) in ended.all()

    async def revoke(self, user_id: UUID, purpose: TokenPurpose) -> None:
        """Revoke the tokens of a user for one purpose."""
        whose = (UserTokenModel.user_id == user_id, UserTokenModel.purpose == purpose)
        await self._count_changed(delete(UserTokenModel).where(*whose))

    async def revoke_all(self, user_id: UUID, *, keep: TokenPurpose | None = None) -> None:
        """Revoke every link of a user, but for those of the purpose to keep."""
        kept = () if keep is None else (UserTokenModel.purpose != keep,)
        await self._session.execute(delete(UserTokenModel).where(UserTokenModel.user_id == user_id, *kept))

    def expired(self) -> Condition:
        return UserTokenModel.expires_at <= utc_now()


def _is_usable(token: str, purpose: TokenPurpose) -> tuple[ColumnElement[bool], ...]:
    return (
        UserTokenModel.token_hash == hash_token(token),
        UserTokenModel.purpose == purpose,
        UserTokenModel.expires_at > utc_now(),
        UserTokenModel.failures < _MAX_FAILURES,
    )
