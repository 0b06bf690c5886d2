"""Second factors: whose secret, which codes were used, and the recovery codes that are left."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from sqlalchemy import and_, delete, exists, func, insert, select, update

from src.core.encryption import Encrypted
from src.core.exceptions import AppException, SecondFactorSetError
from src.core.second_factor import hash_recovery_code
from src.db.base import utc_now
from src.db.models import RecoveryCodeModel, SecondFactorModel
from src.db.repositories.base import BaseRepository, Condition


class SecondFactorRepository(BaseRepository[SecondFactorModel]):
    """Whoever changes anything here has locked the user's row."""

    model = SecondFactorModel
    conflicts: ClassVar[Mapping[str, type[AppException]]] = {
        "uq_second_factors_user_id": SecondFactorSetError,
        "UNIQUE constraint failed: second_factors.user_id": SecondFactorSetError,
    }

    async def is_set(self, user_id: UUID) -> bool:
        query = select(SecondFactorModel.id).where(
            SecondFactorModel.user_id == user_id, SecondFactorModel.confirmed_at.is_not(None)
        )
        return await self._session.scalar(query.execution_options(is_plain=True)) is not None

    async def find_confirmed(self, user_id: UUID) -> SecondFactorModel | None:
        """The factor that the user has; not one whose set-up has only begun."""
        query = select(SecondFactorModel).where(
            SecondFactorModel.user_id == user_id, SecondFactorModel.confirmed_at.is_not(None)
        )
        return (await self._session.scalars(query)).one_or_none()

    async def begin(self, user_id: UUID, secret: Encrypted) -> None:
        """Begin a set-up, in the place of an unfinished one. Raises `SecondFactorSetError` if the user has a factor."""
        await self._count_changed(
            delete(SecondFactorModel).where(
                SecondFactorModel.user_id == user_id, SecondFactorModel.confirmed_at.is_(None)
            )
        )
        await self.add(SecondFactorModel(user_id=user_id, encrypted_secret=secret.data, key_id=secret.key_id))

    async def confirm(self, user_id: UUID, *, step: int) -> bool:
        """Finish a set-up by the code of this time step, which works no second time; false if there is none."""
        statement = (
            update(SecondFactorModel)
            .where(SecondFactorModel.user_id == user_id, SecondFactorModel.confirmed_at.is_(None))
            .values(confirmed_at=utc_now(), last_step=step)
        )
        return await self._count_changed(statement) == 1

    async def add_confirmed(self, secrets: Mapping[UUID, Encrypted]) -> None:
        """Insert factors that users have from elsewhere, by the users' ids: their apps have the secrets already."""
        rows = [
            {"user_id": user_id, "encrypted_secret": secret.data, "key_id": secret.key_id, "confirmed_at": utc_now()}
            for user_id, secret in secrets.items()
        ]
        if rows:
            await self._session.execute(insert(SecondFactorModel), rows)

    async def claim_step(self, user_id: UUID, step: int) -> bool:
        """Use the code of this time step up, and those of all before (RFC 6238, section 5.2). Of two who try at once,
        one is told true."""
        statement = (
            update(SecondFactorModel)
            .where(
                SecondFactorModel.user_id == user_id,
                SecondFactorModel.confirmed_at.is_not(None),
                SecondFactorModel.last_step < step,
            )
            .values(last_step=step)
        )
        return await self._count_changed(statement) == 1

    async def remove(self, user_id: UUID) -> bool:
        """Remove the factor, or the set-up that has begun, and the recovery codes; false if the user has no factor."""
        await self.replace_recovery_codes(user_id, [])
        removed = await self._session.scalars(
            delete(SecondFactorModel)
            .where(SecondFactorModel.user_id == user_id)
            .returning(SecondFactorModel.confirmed_at)
        )
        return any(removed.all())

    async def replace_recovery_codes(self, user_id: UUID, codes: Collection[str]) -> None:
        await self._count_changed(delete(RecoveryCodeModel).where(RecoveryCodeModel.user_id == user_id))
        self._session.add_all(
            RecoveryCodeModel(user_id=user_id, code_hash=hash_recovery_code(code, user_id)) for code in codes
        )
        await self._session.flush()

    async def consume_recovery_code(self, user_id: UUID, code: str) -> bool:
        """Use a recovery code up. Of two who try at once, one is told true."""
        statement = delete(RecoveryCodeModel).where(
            RecoveryCodeModel.user_id == user_id, RecoveryCodeModel.code_hash == hash_recovery_code(code, user_id)
        )
        return await self._count_changed(statement) == 1

    async def find_state(self, user_id: UUID) -> tuple[bool, int]:
        """Whether a factor is set, and how many recovery codes are left."""
        is_set = exists().where(SecondFactorModel.user_id == user_id, SecondFactorModel.confirmed_at.is_not(None))
        codes_left = select(func.count()).select_from(RecoveryCodeModel).where(RecoveryCodeModel.user_id == user_id)
        query = select(is_set, codes_left.scalar_subquery()).execution_options(is_plain=True)
        row = (await self._session.execute(query)).one()
        return bool(row[0]), row[1]

    async def count_recovery_codes(self, user_id: UUID) -> int:
        query = select(func.count()).select_from(RecoveryCodeModel).where(RecoveryCodeModel.user_id == user_id)
        return (await self._session.scalars(query)).one()

    async def count_by_key(self) -> Mapping[str, int]:
        """How many secrets each key has encrypted, those of unfinished set-ups included."""
        query = select(SecondFactorModel.key_id, func.count()).group_by(SecondFactorModel.key_id)
        return dict((await self._session.execute(query)).all())

    async def lock_of_other_keys(self, key_id: str, *, after: UUID | None, limit: int) -> Sequence[SecondFactorModel]:
        """Those whose secret another key has encrypted, in the order of their ids, from behind the id `after`.

        Without the users' rows: who has these changes nothing else, and so waits for no lock of somebody who has them.
        """
        query = select(SecondFactorModel).where(SecondFactorModel.key_id != key_id)
        if after is not None:
            query = query.where(SecondFactorModel.id > after)
        locked = query.order_by(SecondFactorModel.id).limit(limit).with_for_update(key_share=True)
        return (await self._session.scalars(locked)).all()

    async def replace_secrets(self, secrets: Mapping[UUID, Encrypted]) -> None:
        """Store the secrets of these factors, by their ids, in the place of what is there."""
        rows = [{"id": id_, "encrypted_secret": it.data, "key_id": it.key_id} for id_, it in secrets.items()]
        if rows:
            await self._session.execute(update(SecondFactorModel), rows)

    def abandoned(self, begun_before: datetime) -> Condition:
        """Set-ups of before then that were never confirmed."""
        return and_(SecondFactorModel.confirmed_at.is_(None), SecondFactorModel.created_at < begun_before)
