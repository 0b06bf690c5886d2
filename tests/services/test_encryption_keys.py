"""Second factors outlive the keys that encrypt them, and a copy of the database without a key tells none of them."""

import asyncio
import logging
from base64 import b32decode
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import delete, select, update

from src.api.dependencies import runtime_of
from src.core.encryption import DecryptionError, Encrypted, Encryption
from src.core.exceptions import ServiceUnavailableException
from src.core.keys import SIGNS_AFTER, load_keys
from src.db import AsyncDatabaseManager
from src.db.models import SecondFactorModel, UserModel
from src.services import KeyService
from src.services.keys import BATCH, Reencrypted
from src.services.proofs import consume_code, read_secret
from tests.support.databases import add_rows, dump, execute, wait_until_blocked, writing
from tests.support.factories import DAY, add_users
from tests.support.keys import make_ring, rotate_ago
from tests.support.second_factor import add_second_factor, code_of
from tests.support.service import Service, StartService, operators_context


@dataclass
class Keyed:
    """A service with a folder of keys of its own, and Ana, who has a second factor there."""

    service: Service
    folder: Path
    ana: str
    secret: str

    @property
    def database(self) -> AsyncDatabaseManager:
        return self.service.database

    @property
    def key_ids(self) -> list[str]:
        return [key.id for key in load_keys(self.folder).encryption]

    def rotate(self, ago: timedelta = SIGNS_AFTER) -> None:
        """So long ago that by now the new key encrypts."""
        rotate_ago(self.folder, ago)

    def lose(self, key_id: str) -> None:
        [path] = [key.path for key in load_keys(self.folder).encryption if key.id == key_id]
        path.unlink()

    async def add(self, name: str) -> UUID:
        """Another who has a second factor."""
        [id_] = await add_users(self.database, {"email": f"{name}@example.com"})
        await add_second_factor(self.service, id_)
        return UUID(id_)

    async def reencrypt(self) -> Reencrypted:
        async with operators_context(self.service) as context:
            return await KeyService(context).reencrypt()

    async def factors(self) -> list[SecondFactorModel]:
        async with self.database.session() as session:
            return [*await session.scalars(select(SecondFactorModel).order_by(SecondFactorModel.id))]

    async def read_secret(self) -> str:
        async with operators_context(self.service) as context:
            return read_secret(context, (await self.factors())[0])

    async def consume(self, code: str) -> bool:
        async with operators_context(self.service) as context:
            await context.uow.begin()
            await context.uow.users.lock_users(UUID(self.ana))
            factor = await context.uow.second_factors.find_confirmed(UUID(self.ana))
            assert factor is not None
            is_right = await consume_code(context, factor, code, email="ana@example.com")
            await context.commit()
            return is_right


@pytest.fixture
async def keyed(start_service: StartService, tmp_path: Path) -> Keyed:
    service = await start_service()
    rotate_ago(tmp_path / "keys", DAY)
    runtime_of(service.app).encryption = Encryption(make_ring(tmp_path / "keys", may_generate=False))
    [ana] = await add_users(service.database, {"email": "ana@example.com"})
    return Keyed(service, tmp_path / "keys", ana, await add_second_factor(service, ana))


async def test_codes_go_on_working_while_a_key_is_rotated_and_after_the_old_one_is_retired(keyed: Keyed) -> None:
    keyed.rotate()
    old, new = keyed.key_ids

    during = await keyed.consume(code_of(keyed.secret))
    counts = await keyed.reencrypt()
    keyed.lose(old)
    after = await keyed.consume(code_of(keyed.secret, 1))

    assert (during, after) == (True, True)
    assert counts == Reencrypted(reencrypted=1)
    assert [factor.key_id for factor in await keyed.factors()] == [new]


async def test_an_unfinished_set_up_is_encrypted_anew_as_well(keyed: Keyed) -> None:
    await execute(keyed.database, update(SecondFactorModel).values(confirmed_at=None))
    keyed.rotate()

    assert await keyed.reencrypt() == Reencrypted(reencrypted=1)
    assert await keyed.read_secret() == keyed.secret


async def test_what_the_current_key_has_encrypted_is_left_as_it_is(keyed: Keyed) -> None:
    before = await dump(keyed.database)

    assert await keyed.reencrypt() == Reencrypted()
    assert await dump(keyed.database) == before


async def test_while_the_new_key_waits_nothing_is_encrypted_with_it(keyed: Keyed) -> None:
    rotate_ago(keyed.folder, SIGNS_AFTER / 2)

    assert await keyed.reencrypt() == Reencrypted()
    assert [factor.key_id for factor in await keyed.factors()] == keyed.key_ids[:1]


async def test_what_cannot_be_decrypted_is_counted_by_its_key_and_left(keyed: Keyed) -> None:
    [lost] = keyed.key_ids
    keyed.rotate(DAY / 2)
    keyed.lose(lost)
    [between] = keyed.key_ids
    await keyed.add("ben")
    cleo = await keyed.add("cleo")
    [_, of_ben, _] = await keyed.factors()
    moved = update(SecondFactorModel).where(SecondFactorModel.user_id == cleo)
    await execute(keyed.database, moved.values(encrypted_secret=of_ben.encrypted_secret))
    keyed.rotate()
    new = keyed.key_ids[-1]

    counts = await keyed.reencrypt()

    assert counts == Reencrypted(reencrypted=1, left=Counter({lost: 1, between: 1}))
    assert [factor.key_id for factor in await keyed.factors()] == [lost, new, between]


async def test_more_than_a_batch_is_encrypted_anew_behind_one_that_is_left(keyed: Keyed) -> None:
    [lost] = keyed.key_ids
    keyed.rotate(DAY / 2)
    keyed.lose(lost)
    encryption = runtime_of(keyed.service.app).encryption
    users = [UserModel(email=f"person{number}@example.com", hashed_password="-") for number in range(BATCH + 1)]
    await add_rows(keyed.database, *users)
    secrets = [encryption.encrypt("JBSWY3DPEHPK3PXP", user_id=user.id) for user in users]
    await add_rows(
        keyed.database,
        *(
            SecondFactorModel(user_id=user.id, encrypted_secret=secret.data, key_id=secret.key_id)
            for user, secret in zip(users, secrets, strict=True)
        ),
    )
    keyed.rotate()

    assert await keyed.reencrypt() == Reencrypted(reencrypted=BATCH + 1, left=Counter({lost: 1}))
    assert await keyed.reencrypt() == Reencrypted(left=Counter({lost: 1}))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_factor_that_is_removed_meanwhile_stays_removed(keyed: Keyed) -> None:
    keyed.rotate()

    async with writing(keyed.database) as session:
        await session.execute(delete(SecondFactorModel))
        reencrypting = asyncio.create_task(keyed.reencrypt())
        await wait_until_blocked(keyed.database)

    assert await reencrypting == Reencrypted()
    assert await keyed.factors() == []


async def test_a_key_that_was_lost_is_our_failure_and_the_log_names_it(
    keyed: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    [lost] = keyed.key_ids
    keyed.rotate()
    keyed.lose(lost)

    with pytest.raises(ServiceUnavailableException):
        await keyed.read_secret()

    [told] = [record for record in caplog.records if record.name == "src.services.proofs"]
    assert told.levelno == logging.ERROR
    assert told.getMessage() == (
        f"The second factor of user {keyed.ana} cannot be read: "
        f"The encryption key {lost} is not in JWT_KEYS_DIR: put its file back."
    )


async def test_a_copy_of_the_database_without_its_key_tells_no_secret(keyed: Keyed, tmp_path: Path) -> None:
    [factor] = await keyed.factors()
    rotate_ago(tmp_path / "others", DAY)
    thief = Encryption(make_ring(tmp_path / "others"))

    assert keyed.secret not in await dump(keyed.database)
    with pytest.raises(DecryptionError):
        thief.decrypt(Encrypted(factor.key_id, factor.encrypted_secret), user_id=factor.user_id)
    [other] = thief.keys.encryption_keys
    with pytest.raises(DecryptionError):
        thief.decrypt(Encrypted(other.id, factor.encrypted_secret), user_id=factor.user_id)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_file_of_the_database_tells_no_secret(keyed: Keyed, database_url: str) -> None:
    path = Path(database_url.removeprefix("sqlite:///"))

    stored = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))

    assert keyed.ana.replace("-", "").encode() in stored  # it is the right file
    assert keyed.secret.encode() not in stored
    assert b32decode(keyed.secret) not in stored
