"""People of another system, with the hashes of their passwords."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from sqlalchemy import select

from src.api.dependencies import runtime_of
from src.core.encryption import Encryption
from src.core.keys import NoKeysError
from src.core.passwords import hash_password, needs_rehash
from src.db import AsyncDatabaseManager
from src.db.models import AuditEventModel, SecondFactorModel, UserModel
from src.services.imports import BATCH, MAX_LINE_BYTES, ImportCounts, import_people
from src.services.proofs import consume_code
from tests.support.databases import dump, list_events, read_tables, writing
from tests.support.factories import add_users
from tests.support.imports import HASH, line, lines
from tests.support.keys import make_ring
from tests.support.second_factor import code_of
from tests.support.service import Service, StartService, operators_context
from tests.support.steps import PASSWORD, activate, log_in, post_log_in, sign_up, token_of

# Keys are asked for only where somebody has a second factor: with these, that would be an error.
NO_KEYS = Encryption(make_ring(Path("/nowhere"), may_generate=False))


@dataclass
class Reports:
    """What was told of lines that were refused."""

    reasons: dict[int, str] = field(default_factory=dict)

    def __call__(self, number: int, reason: str) -> None:
        assert number not in self.reasons
        self.reasons[number] = reason


def nothing_is_refused(number: int, reason: str) -> None:
    raise AssertionError(f"line {number}: {reason}")


async def take(database: AsyncDatabaseManager, *content: bytes, dry_run: bool = False) -> ImportCounts:
    """Import lines that are all good."""
    file = BytesIO(b"".join(content))
    return await import_people(
        database, file, encryption=NO_KEYS, is_production=False, report=nothing_is_refused, dry_run=dry_run
    )


async def read_users(database: AsyncDatabaseManager, *columns: Any) -> list[Any]:
    async with database.session() as session:
        return [tuple(row) for row in await session.execute(select(*columns).order_by(UserModel.id))]


# --- what is refused ---


async def test_every_bad_line_is_told_without_its_content_and_the_others_are_imported(
    database: AsyncDatabaseManager,
) -> None:
    no_hash = (
        "hashed_password: is not a hash that can be verified: bcrypt ($2a$, $2b$, $2y$), or bcrypt-sha256 version 2"
    )
    unknown = "has a field that is not known"
    bad = {
        b"canary\n": "is not valid JSON",
        b'{"email": "canary@example.com"\n': "is not valid JSON",
        b'{"email": "\xff canary"}\n': "is not valid JSON",
        b'{"email": "\\ud800 canary"}\n': "is not valid JSON",
        b"[" * 10_000 + b"\n": "is not valid JSON",
        b'["canary"]\n': "must be a JSON object",
        b"null\n": "must be a JSON object",
        b"{}\n": "email: is required; hashed_password: is required",
        line("canary"): "email: has no @, as in name@example.com",
        line(None): "email: must be a string",
        line("c" * 321): "email: must have at most 320 characters",
        line("canary@example.com", hashed_password="canary"): no_hash,
        line("canary@example.com", hashed_password="!"): no_hash,
        line("canary@example.com", hashed_password="$2x" + HASH[3:]): no_hash,
        line("canary@example.com", hashed_password=HASH + "\n"): no_hash,
        line("canary@example.com", hashed_password="$argon2id$v=19$m=65536,t=3,p=4$Y2FuYXJ5$Y2FuYXJ5"): no_hash,
        line("canary@example.com", hashed_password="c" * 256): "hashed_password: must have at most 255 characters",
        line("canary@example.com", hashed_password=HASH.replace("04", "21")): (
            "hashed_password: has a cost above 20: each log-in would take minutes"
        ),
        line("canary@example.com", name="canary\x00"): "name: must not contain control characters",
        line("canary@example.com", name="\x1b[2Jcanary"): "name: must not contain control characters",
        line("canary@example.com", name="canary\u202e"): (
            "name: must not contain characters that change the direction of text"
        ),
        line("canary@example.com", name="a\u2028canary"): "name: must not contain line or paragraph separators",
        line("canary@example.com", name="https://canary.example"): "name: must not contain a web address",
        line("canary@example.com", name="c" * 201): "name: must have at most 200 characters",
        line("canary@example.com", name=1): "name: must be a string",
        line("canary@example.com", totp_secret="canary 189"): "totp_secret: is not base32",
        line("canary@example.com", totp_secret="CANARY"): "totp_secret: is not base32",
        line("canary@example.com", totp_secret="CANARYCA"): "totp_secret: must have at least 80 bits",
        line("canary@example.com", totp_secret="CANARYCA" * 17): "totp_secret: must have at most 128 characters",
        line("canary@example.com", totp_secret=1): "totp_secret: must be a string",
        line("canary@example.com", is_active="true"): "is_active: must be true or false",
        line("canary@example.com", is_admin=1): "is_admin: must be true or false",
        line("canary@example.com", canary=1, another_canary=2): unknown,
        line("canary", canary=1): f"email: has no @, as in name@example.com; {unknown}",
        b"c" * (MAX_LINE_BYTES + 1) + b"\n": "is longer than 16,384 bytes",
        b"c" * (3 * MAX_LINE_BYTES) + b"\n": "is longer than 16,384 bytes",
    }
    reports = Reports()
    file = b"".join([line("ana@example.com"), *bad, line("zoe@example.com")])

    counts = await import_people(database, BytesIO(file), encryption=NO_KEYS, is_production=False, report=reports)

    assert reports.reasons == dict(enumerate(bad.values(), start=2))
    assert counts == ImportCounts(imported=2, refused=len(bad))
    assert await read_users(database, UserModel.email) == [("ana@example.com",), ("zoe@example.com",)]


async def test_the_longest_line_a_line_without_end_and_empty_ones_are_read(database: AsyncDatabaseManager) -> None:
    short = line("ana@example.com").rstrip()
    longest = short.replace(b" ", b" " * (MAX_LINE_BYTES - len(short) + 1), 1)
    assert len(longest) == MAX_LINE_BYTES

    counts = await take(database, longest, b"\r\n", b"\n", b" \r\n", line("ben@example.com").rstrip())

    assert counts == ImportCounts(imported=2)


async def test_the_mark_at_the_beginning_of_a_file_and_empty_names_are_what_exports_write(
    database: AsyncDatabaseManager,
) -> None:
    counts = await take(database, b"\xef\xbb\xbf" + line("ana@example.com", name=""), line("ben@example.com", name=" "))

    assert counts == ImportCounts(imported=2)
    assert await read_users(database, UserModel.name) == [(None,), (None,)]


async def test_a_file_without_an_end_of_line_is_never_held_whole(database: AsyncDatabaseManager) -> None:
    class Endless:
        left = 100

        def readline(self, size: int, /) -> bytes:
            assert 0 < size <= MAX_LINE_BYTES + 1
            self.left -= 1
            return b"{" * size if self.left > 0 else b""

    reports = Reports()

    await import_people(database, Endless(), encryption=NO_KEYS, is_production=False, report=reports)

    assert reports.reasons == {1: "is longer than 16,384 bytes"}


# --- what is made ---


async def test_people_become_accounts_in_the_order_of_the_file(database: AsyncDatabaseManager) -> None:
    await take(
        database,
        line("Zoe@Example.com", name=" Zoe "),
        line("ana@example.com", is_admin=True),
        line("ben@bücher.example", is_active=False, name=None),
    )

    user = UserModel
    columns = (user.email, user.name, user.is_active, user.is_admin, user.hashed_password, user.signed_up_from)
    assert await read_users(database, *columns) == [
        ("zoe@example.com", "Zoe", True, False, HASH, None),
        ("ana@example.com", None, True, True, HASH, None),
        ("ben@xn--bcher-kva.example", None, False, False, HASH, None),
    ]
    assert None not in {activated for (activated,) in await read_users(database, user.activated_at)}


async def test_each_person_has_an_event_that_tells_their_rights(database: AsyncDatabaseManager) -> None:
    await take(
        database,
        line("zoe@example.com"),
        line("ana@example.com", is_admin=True),
        line("ben@example.com", is_active=False),
        line("cleo@example.com", is_active=False, is_admin=True),
    )
    await take(database, line("ana@example.com"))

    event = AuditEventModel
    columns = (UserModel.email, event.kind, event.outcome, event.changes, event.origin, event.actor_id, event.client_id)
    async with database.session() as session:
        query = select(*columns).join(UserModel, UserModel.id == event.user_id).order_by(UserModel.id)
        events = [tuple(row) for row in await session.execute(query)]
    assert events == [
        (f"{name}@example.com", "user_import", "success", changes, "command line", None, None)
        for name, changes in {
            "zoe": None,
            "ana": "is_admin=true",
            "ben": "is_active=false",
            "cleo": "is_admin=true is_active=false",
        }.items()
    ]


def foreign(password: str) -> str:
    """As PHP makes them."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")


@pytest.mark.parametrize(
    "hash_them",
    [pytest.param(foreign, id="bcrypt"), pytest.param(lambda password: hash_password(password, 4), id="bcrypt-sha256")],
)
async def test_an_imported_person_logs_in_with_their_password_and_their_hash_is_upgraded(
    start_service: StartService, database: AsyncDatabaseManager, hash_them: Callable[[str], str]
) -> None:
    service = await start_service(auth_bcrypt_rounds=5)
    await take(database, line("ana@example.com", hashed_password=hash_them(PASSWORD)))

    wrong = await post_log_in(service, password="another-" + PASSWORD)
    ((before,),) = await read_users(database, UserModel.hashed_password)
    await log_in(service)

    ((after,),) = await read_users(database, UserModel.hashed_password)
    assert wrong.status_code == 401
    assert (needs_rehash(before, 5), needs_rehash(after, 5)) == (True, False)
    await log_in(service)


@pytest.fixture
def encryption(service: Service) -> Encryption:
    return runtime_of(service.app).encryption


async def import_one(database: AsyncDatabaseManager, encryption: Encryption, content: bytes) -> ImportCounts:
    return await import_people(
        database, BytesIO(content), encryption=encryption, is_production=False, report=nothing_is_refused
    )


async def read_factors(database: AsyncDatabaseManager) -> list[SecondFactorModel]:
    async with database.session() as session:
        return [*await session.scalars(select(SecondFactorModel))]


async def test_an_imported_person_goes_on_using_their_authenticator_app(
    service: Service, database: AsyncDatabaseManager, encryption: Encryption
) -> None:
    secret = "jbsw y3dp ehpk 3pxp jbsw y3dp eh======"
    await import_one(database, encryption, line("ana@example.com", totp_secret=secret))

    [factor] = await read_factors(database)
    async with operators_context(service) as context:
        await context.uow.begin()
        assert await consume_code(context, factor, code_of("JBSWY3DPEHPK3PXPJBSWY3DPEH"), email="ana@example.com")
        assert await context.uow.second_factors.is_set(factor.user_id)
        assert await context.uow.second_factors.count_recovery_codes(factor.user_id) == 0
    assert "JBSWY3DPEHPK3PXP" not in await dump(database)


async def test_the_event_tells_that_an_imported_person_has_a_second_factor(
    database: AsyncDatabaseManager, encryption: Encryption
) -> None:
    content = line("ana@example.com", is_admin=True, is_active=False, totp_secret="JBSWY3DPEHPK3PXP")

    await import_one(database, encryption, content)

    [event] = await list_events(database)
    assert event.changes == "is_admin=true is_active=false second_factor"


@pytest.mark.parametrize("empty", ["", " ", None])
async def test_an_empty_secret_is_no_second_factor(database: AsyncDatabaseManager, empty: str | None) -> None:
    assert await take(database, line("ana@example.com", totp_secret=empty)) == ImportCounts(imported=1)
    assert await read_factors(database) == []


async def test_an_account_that_is_there_gets_no_second_factor_of_the_file(
    database: AsyncDatabaseManager, encryption: Encryption
) -> None:
    await add_users(database, {"email": "ana@example.com"})

    await import_one(database, encryption, line("ana@example.com", totp_secret="JBSWY3DPEHPK3PXP"))

    assert await read_factors(database) == []


async def test_a_batch_whose_second_factors_cannot_be_encrypted_is_not_imported(database: AsyncDatabaseManager) -> None:
    content = line("ana@example.com") + line("ben@example.com", totp_secret="JBSWY3DPEHPK3PXP")

    with pytest.raises(NoKeysError):
        await import_one(database, NO_KEYS, content)

    assert await read_users(database, UserModel.email) == []


async def test_an_imported_person_who_is_disabled_cannot_log_in(
    service: Service, database: AsyncDatabaseManager
) -> None:
    await take(database, line("ana@example.com", hashed_password=foreign(PASSWORD), is_active=False))

    assert (await post_log_in(service)).status_code == 401


# --- whoever is there already ---


async def test_an_address_that_has_an_account_is_left_as_it_is(database: AsyncDatabaseManager) -> None:
    await add_users(
        database,
        {"email": "ana@example.com", "name": "Ana"},
        {"email": "ben@example.com", "is_active": False},
        {"email": "ana@example.com", "activated_at": None, "is_active": False},
    )
    before = await read_tables(database)

    counts = await take(
        database, line("ANA@example.com", name="Mallory", is_admin=True), line("ben@example.com", is_active=True)
    )

    assert counts == ImportCounts(unchanged=2)
    assert await read_tables(database) == before


async def test_of_lines_about_one_address_the_first_counts_however_far_apart(database: AsyncDatabaseManager) -> None:
    counts = await take(
        database,
        line("ana@example.com", name="First"),
        line("Ana@EXAMPLE.com", name="Second"),
        *lines(BATCH),
        line("ana@example.com", name="Third"),
    )

    assert counts == ImportCounts(imported=BATCH + 1, unchanged=2)
    assert (await read_users(database, UserModel.name))[0] == ("First",)


async def test_repeating_an_import_changes_nothing(database: AsyncDatabaseManager) -> None:
    content = [line("ana@example.com"), *lines(10), line("Ana@example.com")]
    await take(database, *content)
    before = await read_tables(database)

    again = await take(database, *content)

    assert again == ImportCounts(unchanged=12)
    assert await read_tables(database) == before


async def test_a_dry_run_counts_as_the_import_does_and_writes_nothing(database: AsyncDatabaseManager) -> None:
    await add_users(
        database,
        {"email": "ana@example.com"},
        {"email": "ben@example.com", "activated_at": None, "is_active": False},
    )
    content = [line("ANA@example.com"), line("ben@example.com"), *lines(BATCH), *lines(3), b"canary\n"]
    before = await read_tables(database)
    looked_at, imported = Reports(), Reports()

    file = BytesIO(b"".join(content))
    looked = await import_people(
        database, file, encryption=NO_KEYS, is_production=False, report=looked_at, dry_run=True
    )
    after = await read_tables(database)
    file.seek(0)
    counts = await import_people(database, file, encryption=NO_KEYS, is_production=False, report=imported)

    assert looked == counts == ImportCounts(imported=BATCH + 1, unchanged=4, refused=1)
    assert looked_at.reasons == imported.reasons
    assert after == before


async def test_sign_ups_that_wait_for_the_address_end(service: Service, database: AsyncDatabaseManager) -> None:
    squatter = await sign_up(service, password="the-password-of-a-squatter")
    other = await sign_up(service, "ben@example.com")

    await take(database, line("ana@example.com", hashed_password=foreign(PASSWORD)))

    links = [await activate(service, token_of(each["activation_url"])) for each in (squatter, other)]
    assert [link.status_code for link in links] == [400, 200]
    assert await read_users(database, UserModel.email) == [("ben@example.com",), ("ana@example.com",)]
    await log_in(service)


# --- interruptions and races ---


@pytest.mark.slow
async def test_an_import_that_was_interrupted_is_ended_by_repeating_it(database: AsyncDatabaseManager) -> None:
    content = lines(2 * BATCH + 10)

    class Broken:
        def __init__(self) -> None:
            self.rest: Iterator[bytes] = iter(content[: BATCH + 5])

        def readline(self, _size: int, /) -> bytes:
            try:
                return next(self.rest)
            except StopIteration:
                raise OSError("the disk is gone") from None

    with pytest.raises(OSError, match="the disk is gone"):
        await import_people(database, Broken(), encryption=NO_KEYS, is_production=False, report=nothing_is_refused)
    stored = await read_users(database, UserModel.email)
    counts = await take(database, *content)

    assert len(stored) == BATCH
    assert counts == ImportCounts(imported=BATCH + 10, unchanged=BATCH)
    assert await read_users(database, UserModel.email) == [(json.loads(each)["email"],) for each in content]


@pytest.mark.slow
async def test_an_address_that_is_activated_meanwhile_does_not_stop_the_others(
    database: AsyncDatabaseManager, database_url: str
) -> None:
    other = AsyncDatabaseManager(database_url)
    async with writing(database) as session:
        session.add(UserModel(email="person1@example.com", hashed_password="of-the-owner"))
        await session.flush()
        importing = asyncio.create_task(take(other, *lines(3)))
        await asyncio.sleep(0.3)  # until it waits for the other transaction
        assert not importing.done()

    assert await importing == ImportCounts(imported=2, unchanged=1)
    owners = await read_users(database, UserModel.email, UserModel.hashed_password)
    assert [hash_ for email, hash_ in owners if email == "person1@example.com"] == ["of-the-owner"]
    await other.disconnect()


async def test_two_imports_of_the_same_people_at_once_share_the_work(
    database: AsyncDatabaseManager, database_url: str
) -> None:
    others = [AsyncDatabaseManager(database_url) for _ in range(2)]
    content = lines(BATCH // 2)

    counts = await asyncio.gather(take(others[0], *content), take(others[1], *reversed(content)))

    assert sum(each.imported for each in counts) == sum(each.unchanged for each in counts) == len(content)
    assert len(await read_users(database, UserModel.id)) == len(content)
    for each in others:
        await each.disconnect()
