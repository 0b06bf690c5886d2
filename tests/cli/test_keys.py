"""`python -m src keys`, on real key files."""

import asyncio
import json
import re
import stat
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import select, update
from typer.testing import Result

from src.core.encryption import Encryption
from src.core.keys import SIGNS_AFTER, load_keys, rotate
from src.db import AsyncDatabaseManager
from src.db.migrations import find_revision
from src.db.models import AuditEventModel, SecondFactorModel
from tests.support.databases import connected, execute
from tests.support.factories import DAY, add_users
from tests.support.keys import make_ring, rotate_ago
from tests.support.processes import run
from tests.support.second_factor import store_second_factor

ACCESS_LIFETIME = timedelta(minutes=15)
IDLE_LIFETIME = timedelta(days=14)


def run_keys(folder: Path, *arguments: str, **environment: str) -> Result:
    return run("keys", *arguments, JWT_KEYS_DIR=str(folder), **environment)


def key_ids(folder: Path) -> set[str]:
    return {key.id for keys in load_keys(folder) for key in keys}


def encryption_ids(folder: Path) -> list[str]:
    return [key.id for key in load_keys(folder).encryption]


class TestRotate:
    @pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", pytest.param("RS256", marks=pytest.mark.slow)])
    def test_it_makes_a_key_of_each_kind_and_the_access_key_is_of_the_algorithm(
        self, tmp_path: Path, algorithm: str
    ) -> None:
        result = run_keys(tmp_path / "keys", "rotate", JWT_ALGORITHM=algorithm)

        [access], [refresh], [encryption] = load_keys(tmp_path / "keys")
        assert result.exit_code == 0
        assert access.algorithm == algorithm
        for key, does in ((access, "signs"), (refresh, "signs"), (encryption, "encrypts")):
            assert re.search(rf"{re.escape(key.id)} .* {does} now .*{re.escape(str(key.path))}", result.output)
            assert stat.S_IMODE(key.path.stat().st_mode) == 0o600

    def test_programs_read_what_it_has_made_in_json(self, tmp_path: Path) -> None:
        result = run_keys(tmp_path, "rotate", "--json")

        assert {key["id"] for key in json.loads(result.stdout)} == key_ids(tmp_path)

    def test_twice_in_a_second_makes_two(self, tmp_path: Path) -> None:
        for _ in range(2):
            run_keys(tmp_path, "rotate")

        assert len(key_ids(tmp_path)) == 6

    def test_no_command_prints_a_secret(self, tmp_path: Path) -> None:
        commands = (["rotate"], ["rotate", "--json"], ["list"], ["list", "--json"])
        outputs = [run_keys(tmp_path, *command).output for command in commands]

        for path in (*tmp_path.glob("*.secret"), *tmp_path.glob("*.key")):
            assert path.read_text() not in "".join(outputs)


class TestList:
    def test_it_shows_what_each_key_does(self, tmp_path: Path) -> None:
        oldest, oldest_secret = rotate_ago(tmp_path, 2 * DAY)
        signing, signing_secret = rotate_ago(tmp_path, DAY)
        new, new_secret, new_key = rotate(tmp_path, "ES256")
        decrypting, encrypting, _ = encryption_ids(tmp_path)

        lines = run_keys(tmp_path, "list").output.splitlines()

        signs_from = f"signs from {new.signs_from:%Y-%m-%d %H:%M:%S} UTC"
        expected = [
            ("access", oldest, "ES256", "verifies"),
            ("access", signing, "ES256", "signs now"),
            ("access", new.id, "ES256", signs_from),
            ("refresh", oldest_secret, "HS256", "verifies"),
            ("refresh", signing_secret, "HS256", "signs now"),
            ("refresh", new_secret.id, "HS256", signs_from),
            ("encryption", decrypting, "A256GCM", "decrypts"),
            ("encryption", encrypting, "A256GCM", "encrypts now"),
            ("encryption", new_key.id, "A256GCM", f"encrypts from {new_key.signs_from:%Y-%m-%d %H:%M:%S} UTC"),
        ]
        assert len(lines) == len(expected)
        for line, parts in zip(lines, expected, strict=True):
            assert line.startswith(parts[0])
            assert all(part in line for part in parts), line
            assert str(tmp_path) in line

    def test_programs_read_the_same_in_json(self, tmp_path: Path) -> None:
        oldest, oldest_secret = rotate_ago(tmp_path, 2 * DAY)
        signing, signing_secret = rotate_ago(tmp_path, DAY)
        new, new_secret, new_key = rotate(tmp_path, "ES256")
        decrypting, encrypting, _ = encryption_ids(tmp_path)

        listed = json.loads(run_keys(tmp_path, "list", "--json").stdout)

        signs_from = f"{new.signs_from:%Y-%m-%dT%H:%M:%SZ}"
        assert [(key["kind"], key["id"], key["algorithm"], key["state"], key["signs_from"]) for key in listed] == [
            ("access", oldest, "ES256", "verifies", None),
            ("access", signing, "ES256", "signs", None),
            ("access", new.id, "ES256", "waits", signs_from),
            ("refresh", oldest_secret, "HS256", "verifies", None),
            ("refresh", signing_secret, "HS256", "signs", None),
            ("refresh", new_secret.id, "HS256", "waits", signs_from),
            ("encryption", decrypting, "A256GCM", "decrypts", None),
            ("encryption", encrypting, "A256GCM", "encrypts", None),
            ("encryption", new_key.id, "A256GCM", "waits", signs_from),
        ]
        assert [Path(key["path"]) for key in listed[2::3]] == [new.path, new_secret.path, new_key.path]

    def test_where_there_are_no_keys_the_json_is_an_empty_list(self, tmp_path: Path) -> None:
        assert json.loads(run_keys(tmp_path, "list", "--json").stdout) == []

    def test_a_key_of_another_algorithm_only_verifies(self, tmp_path: Path) -> None:
        rotate_ago(tmp_path, DAY, "ES256")

        lines = run_keys(tmp_path, "list", JWT_ALGORITHM="EdDSA").output.splitlines()

        assert ["verifies" in line for line in lines] == [True, False, False]

    def test_where_there_are_no_keys_it_shows_none(self, tmp_path: Path) -> None:
        result = run_keys(tmp_path, "list")

        assert (result.exit_code, result.output) == (0, "")

    def test_a_file_that_is_no_key_is_named_in_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "broken.pem").write_text("not a key")

        result = run_keys(tmp_path, "list")

        assert result.exit_code == 1
        assert "broken.pem is not a private key" in result.stderr
        assert isinstance(result.exception, SystemExit)


def assert_kept(result: Result, folder: Path, key_id: str, *, because: str) -> None:
    assert result.exit_code == 1
    assert because in result.stderr
    assert "--force" in result.stderr
    assert key_id in key_ids(folder)


class TestRetire:
    def test_the_key_that_signs_is_kept(self, tmp_path: Path) -> None:
        for key_id in rotate_ago(tmp_path, DAY):
            result = run_keys(tmp_path, "retire", key_id)

            assert_kept(result, tmp_path, key_id, because="It signs")

    def test_the_key_that_signs_is_kept_while_its_successor_waits(self, tmp_path: Path) -> None:
        signing = rotate_ago(tmp_path, DAY)
        rotate(tmp_path, "ES256")

        for key_id in signing:
            result = run_keys(tmp_path, "retire", key_id)

            assert_kept(result, tmp_path, key_id, because="Tokens that it signed live until")

    def test_the_key_that_will_sign_is_kept(self, tmp_path: Path) -> None:
        rotate_ago(tmp_path, DAY)

        *signing, encrypting = rotate(tmp_path, "ES256")

        for key in signing:
            assert_kept(run_keys(tmp_path, "retire", key.id), tmp_path, key.id, because="It signs")
        assert_kept(run_keys(tmp_path, "retire", encrypting.id), tmp_path, encrypting.id, because="It encrypts")

    @pytest.mark.parametrize(("index", "lifetime"), [(0, ACCESS_LIFETIME), (1, IDLE_LIFETIME)])
    def test_a_key_is_kept_until_the_last_token_that_it_signed_has_expired(
        self, tmp_path: Path, index: int, lifetime: timedelta
    ) -> None:
        for name, margin in (("early", -timedelta(minutes=1)), ("late", timedelta(minutes=1))):
            folder = tmp_path / name
            old = rotate_ago(folder, 30 * DAY)[index]
            rotate_ago(folder, SIGNS_AFTER + lifetime + margin)

            result = run_keys(folder, "retire", old)

            assert (old in key_ids(folder)) == (name == "early")
            assert result.exit_code == (1 if name == "early" else 0)

    def test_what_is_retired_is_gone_and_the_rest_stays(self, tmp_path: Path) -> None:
        old, old_secret = rotate_ago(tmp_path, 60 * DAY)
        rotate_ago(tmp_path, 30 * DAY)
        before = key_ids(tmp_path)

        results = [run_keys(tmp_path, "retire", key_id) for key_id in (old, old_secret)]

        assert [result.exit_code for result in results] == [0, 0]
        assert f"Retired {old}" in results[0].output
        assert key_ids(tmp_path) == before - {old, old_secret}

    def test_a_key_that_has_leaked_goes_at_once_with_force(self, tmp_path: Path) -> None:
        access, _ = rotate_ago(tmp_path, DAY)

        result = run_keys(tmp_path, "retire", access, "--force")

        assert result.exit_code == 0
        assert access not in key_ids(tmp_path)

    def test_a_key_of_another_algorithm_needs_force(self, tmp_path: Path) -> None:
        other, _ = rotate_ago(tmp_path, 60 * DAY, "ES256")
        rotate_ago(tmp_path, 30 * DAY, "EdDSA")

        refused = run_keys(tmp_path, "retire", other, JWT_ALGORITHM="EdDSA")
        assert_kept(refused, tmp_path, other, because="may have signed")
        forced = run_keys(tmp_path, "retire", other, "--force", JWT_ALGORITHM="EdDSA")

        assert forced.exit_code == 0
        assert other not in key_ids(tmp_path)

    @pytest.mark.parametrize("key_id", ["unknown", "-begins-with-a-dash", "--with-two"])
    def test_an_id_that_no_key_has_is_refused_with_where_to_find_them(self, tmp_path: Path, key_id: str) -> None:
        rotate_ago(tmp_path, DAY)
        before = key_ids(tmp_path)

        result = run_keys(tmp_path, "retire", key_id, "--force")

        assert result.exit_code == 1
        assert f"There is no key {key_id} in {tmp_path}" in result.stderr
        assert "keys list" in result.stderr
        assert key_ids(tmp_path) == before


async def add_factor(database: AsyncDatabaseManager, folder: Path) -> None:
    """Somebody's, whose secret is encrypted with the current key of this folder."""
    encryption = Encryption(make_ring(folder, may_generate=False))
    [user_id] = await add_users(database, {"email": f"person{uuid4().hex}@example.com"})
    await store_second_factor(database, encryption, user_id)


class TestRetireAnEncryptionKey:
    async def test_it_is_kept_until_nothing_is_encrypted_with_it(
        self, database: AsyncDatabaseManager, database_url: str, tmp_path: Path
    ) -> None:
        rotate_ago(tmp_path, DAY)
        await add_factor(database, tmp_path)
        rotate_ago(tmp_path, DAY / 2)
        old, new = encryption_ids(tmp_path)

        refused = await asyncio.to_thread(run_keys, tmp_path, "retire", old, DATABASE_URL=database_url)
        assert_kept(refused, tmp_path, old, because="Second factors that it has encrypted: 1. Run `python -m src keys")
        await asyncio.to_thread(run_keys, tmp_path, "reencrypt", DATABASE_URL=database_url)
        retired = await asyncio.to_thread(run_keys, tmp_path, "retire", old, DATABASE_URL=database_url)

        assert (retired.exit_code, retired.stderr) == (0, "")
        assert encryption_ids(tmp_path) == [new]

    @pytest.mark.parametrize("ago", [timedelta(), SIGNS_AFTER + timedelta(seconds=50)], ids=["waits", "has just begun"])
    def test_it_is_kept_while_requests_may_still_encrypt_with_it(
        self, migrated_sqlite_copy: str, tmp_path: Path, ago: timedelta
    ) -> None:
        rotate_ago(tmp_path, DAY)
        rotate_ago(tmp_path, ago)
        old, _ = encryption_ids(tmp_path)

        result = run_keys(tmp_path, "retire", old, DATABASE_URL=migrated_sqlite_copy)

        assert_kept(result, tmp_path, old, because="It may encrypt until")

    def test_it_is_kept_where_the_database_cannot_tell_what_needs_it(self, tmp_path: Path) -> None:
        rotate_ago(tmp_path / "keys", DAY)
        rotate_ago(tmp_path / "keys", DAY / 2)
        old, _ = encryption_ids(tmp_path / "keys")

        result = run_keys(tmp_path / "keys", "retire", old, DATABASE_URL=f"sqlite:///{tmp_path}/users.db")

        assert_kept(result, tmp_path / "keys", old, because="The database cannot tell what needs it")
        assert [path.name for path in tmp_path.iterdir()] == ["keys"]

    async def test_with_force_it_goes_whatever_needs_it(
        self, database: AsyncDatabaseManager, database_url: str, tmp_path: Path
    ) -> None:
        rotate_ago(tmp_path, DAY)
        await add_factor(database, tmp_path)
        [only] = encryption_ids(tmp_path)

        result = await asyncio.to_thread(run_keys, tmp_path, "retire", only, "--force", DATABASE_URL=database_url)

        assert result.exit_code == 0
        assert encryption_ids(tmp_path) == []


class TestReencrypt:
    async def test_it_tells_how_much_was_encrypted_anew_and_repeating_it_changes_nothing(
        self, database: AsyncDatabaseManager, database_url: str, tmp_path: Path
    ) -> None:
        rotate_ago(tmp_path, DAY)
        await add_factor(database, tmp_path)
        rotate_ago(tmp_path, DAY / 2)

        results = [
            await asyncio.to_thread(run_keys, tmp_path, "reencrypt", *options, DATABASE_URL=database_url)
            for options in ((), ("--json",))
        ]

        assert [(it.exit_code, it.stderr) for it in results] == [(0, ""), (0, "")]
        assert results[0].stdout == "Encrypted anew: 1.\n"
        assert json.loads(results[1].stdout) == {"reencrypted": 0, "left": {}}

    def test_who_comes_before_the_new_key_encrypts_is_told_when_to_come_again(
        self, migrated_sqlite_copy: str, tmp_path: Path
    ) -> None:
        rotate_ago(tmp_path, DAY)
        *_, new = rotate(tmp_path, "ES256")

        result = run_keys(tmp_path, "reencrypt", DATABASE_URL=migrated_sqlite_copy)

        assert result.stdout == "Encrypted anew: 0.\n"
        assert result.stderr == f"{new.id} encrypts from {new.signs_from:%Y-%m-%d %H:%M:%S} UTC: repeat this then.\n"

    async def test_what_was_left_is_told_with_the_key_and_is_a_failure(
        self, database: AsyncDatabaseManager, database_url: str, tmp_path: Path
    ) -> None:
        rotate_ago(tmp_path / "lost", DAY)
        rotate_ago(tmp_path, DAY)
        for folder in (tmp_path / "lost", tmp_path):
            await add_factor(database, folder)
        [lost], [damaged] = encryption_ids(tmp_path / "lost"), encryption_ids(tmp_path)
        await execute(database, update(SecondFactorModel).values(encrypted_secret=b"not what it was"))
        rotate_ago(tmp_path, DAY / 2)

        result = await asyncio.to_thread(run_keys, tmp_path, "reencrypt", DATABASE_URL=database_url)

        assert (result.exit_code, result.stdout) == (1, "Encrypted anew: 0.\n")
        assert result.stderr.splitlines() == [
            f"Left as they are: 1 that {lost} has encrypted, which is not here: put its file back.",
            f"Left as they are: 1 that {damaged} has encrypted, since they were changed, or moved.",
        ]

    def test_where_another_kind_is_missing_it_is_told_which(self, migrated_sqlite_copy: str, tmp_path: Path) -> None:
        for key in rotate(tmp_path, "ES256")[:2]:
            key.path.unlink()
        production = {"APP_ENV": "production", "SERVER_PUBLIC_URL": "https://accounts.example.com"}

        result = run_keys(
            tmp_path, "reencrypt", DATABASE_URL=migrated_sqlite_copy, AUTH_BCRYPT_ROUNDS="12", **production
        )

        assert result.exit_code == 1
        assert result.stderr.startswith("There is no ES256 key (*.pem), no refresh secret (*.secret) in ")

    def test_without_a_key_it_makes_none(self, tmp_path: Path) -> None:
        result = run_keys(tmp_path / "keys", "reencrypt", DATABASE_URL=f"sqlite:///{tmp_path}/users.db")

        assert result.exit_code == 1
        assert result.stderr.startswith(f"There is no encryption key in {tmp_path}/keys: make keys with")
        assert list(tmp_path.iterdir()) == []


@dataclass
class Recorded:
    kind: str
    outcome: str
    origin: str | None
    changes: str | None


async def read_events(url: str) -> list[Recorded]:
    async with connected(url) as database, database.session() as session:
        events = await session.scalars(select(AuditEventModel).order_by(AuditEventModel.id))
        return [Recorded(event.kind, event.outcome, event.origin, event.changes) for event in events]


class TestTheAuditTrail:
    async def test_a_rotation_leaves_an_event_with_the_ids(self, database_url: str, tmp_path: Path) -> None:
        result = await asyncio.to_thread(run_keys, tmp_path, "rotate", DATABASE_URL=database_url)

        [access], [refresh], [encryption] = load_keys(tmp_path)
        assert (result.exit_code, result.stderr) == (0, "")
        assert await read_events(database_url) == [
            Recorded("key_rotation", "success", "command line", f"{access.id} {refresh.id} {encryption.id}")
        ]

    async def test_a_retirement_leaves_an_event_with_the_id(self, database_url: str, tmp_path: Path) -> None:
        key_id, _ = rotate_ago(tmp_path, DAY)

        result = await asyncio.to_thread(run_keys, tmp_path, "retire", key_id, "--force", DATABASE_URL=database_url)

        assert (result.exit_code, result.stderr) == (0, "")
        assert await read_events(database_url) == [Recorded("key_retirement", "success", "command line", key_id)]

    async def test_a_retirement_that_is_refused_leaves_none(self, database_url: str, tmp_path: Path) -> None:
        key_id, _ = rotate_ago(tmp_path, DAY)

        result = await asyncio.to_thread(run_keys, tmp_path, "retire", key_id, DATABASE_URL=database_url)

        assert result.exit_code == 1
        assert await read_events(database_url) == []

    @pytest.mark.parametrize(
        "url",
        [
            "sqlite:///{here}/users.db",
            "sqlite://",
            "postgresql://nobody:canary@127.0.0.1:1/nothing",
            "postgresql://nobody:canary@127.0.0.1:port/nothing",
            "postgresql://nobody@127.0.0.1:1/nothing?canary=canary",
        ],
    )
    def test_keys_need_no_database_but_it_is_told_that_the_trail_lacks_them(self, tmp_path: Path, url: str) -> None:
        url = url.format(here=tmp_path)
        rotated = run_keys(tmp_path / "keys", "rotate", DATABASE_URL=url)
        key_id, *_ = key_ids(tmp_path / "keys")
        retired = run_keys(tmp_path / "keys", "retire", key_id, "--force", DATABASE_URL=url)

        for result in (rotated, retired):
            assert result.exit_code == 0
            assert result.stderr.startswith("This is not in the audit trail: ")
            assert len(result.stderr.splitlines()) == 1
            assert "canary" not in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["keys"]

    async def test_a_database_without_tables_is_left_so(self, empty_url: str, tmp_path: Path) -> None:
        async with connected(empty_url) as database:
            await database.connect()

        result = await asyncio.to_thread(run_keys, tmp_path / "keys", "rotate", DATABASE_URL=empty_url)

        assert result.exit_code == 0
        assert result.stderr.startswith("This is not in the audit trail: ")
        async with connected(empty_url) as database, database.session() as session:
            assert await find_revision(session) is None


def test_who_retires_the_last_key_is_told_that_running_workers_keep_it(tmp_path: Path) -> None:
    access, _ = rotate_ago(tmp_path, DAY)

    result = run_keys(tmp_path, "retire", access, "--force")

    assert "running workers keep it until there is another in its place" in result.stdout
    assert "python -m src keys rotate" in result.stdout


def test_after_a_leak_the_new_key_signs_at_once(tmp_path: Path) -> None:
    leaked = rotate_ago(tmp_path, DAY)

    run_keys(tmp_path, "rotate")
    for key_id in leaked:
        run_keys(tmp_path, "retire", key_id, "--force")

    lines = run_keys(tmp_path, "list").output.splitlines()
    assert ["signs now" in line for line in lines if "encrypt" not in line] == [True, True]
