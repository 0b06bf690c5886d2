"""`python -m src doctor`: finds what is wrong, says so without a secret, and changes nothing."""

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Thread
from unittest.mock import ANY

import pytest
from sqlalchemy import text

from src.core.encryption import Encryption
from src.core.keys import KeyRing, load_keys, rotate
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.migrations import head
from src.db.models import OutboxStatus, UserModel
from tests.support.certificates import make_certificate, tls_of
from tests.support.databases import PostgreSQL, connected, migrate_at, writing
from tests.support.factories import DAY, add_users
from tests.support.keys import make_ring, rotate_ago
from tests.support.outbox import add_email
from tests.support.processes import ROOT, run
from tests.support.second_factor import store_second_factor
from tests.support.smtp_server import MailServer

FIRST_REVISION = "b15d14370105"


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@contextmanager
def hanging_up(listener: socket.socket) -> Iterator[None]:
    """Whoever calls the listener is cut off at once."""
    thread = Thread(target=lambda: listener.accept()[0].close())
    thread.start()
    yield
    thread.join()


@contextmanager
def greeting_late(listener: socket.socket) -> Iterator[None]:
    """Whoever calls the listener waits for its greeting, and then for ever."""

    def greet() -> None:
        caller = listener.accept()[0]
        time.sleep(6)
        caller.send(b"220 at last\r\n")
        while caller.recv(1024):
            pass
        caller.close()

    thread = Thread(target=greet)
    thread.start()
    yield
    thread.join()


@dataclass
class Examined:
    """What doctor has said."""

    exit_code: int
    output: str
    findings: list[dict[str, str]]

    def of(self, check: str) -> list[tuple[str, str]]:
        return [(it["status"], f"{it['text']} {it['advice']}") for it in self.findings if it["check"] == check]

    def worst_of(self, check: str) -> tuple[str, str]:
        """The one finding of the check that is not ok."""
        [found] = [finding for finding in self.of(check) if finding[0] != "ok"]
        return found

    def assert_worst_of(self, check: str, status: str, *words: str) -> None:
        found, told = self.worst_of(check)
        assert found == status
        assert [word for word in words if word not in told] == []


def examine(**environment: str) -> Examined:
    result = run("doctor", "--json", **environment)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    findings = json.loads(result.stdout)
    assert result.exit_code == ("problem" in {finding["status"] for finding in findings})
    return Examined(result.exit_code, result.output, findings)


async def examine_async(**environment: str) -> Examined:
    return await asyncio.to_thread(examine, **environment)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    rotate_ago(tmp_path / "keys", 12 * DAY)
    return tmp_path / "keys"


@pytest.fixture
def smtp_settings(tmp_path: Path) -> Iterator[tuple[MailServer, dict[str, str]]]:
    """A server with TLS and log-in, and the settings with which it takes emails."""
    certificate = make_certificate(tmp_path)
    with MailServer(tls=tls_of(certificate), login=("user", "canary-smtp")) as server:
        yield (
            server,
            {
                "SMTP_HOST": "127.0.0.1",
                "SMTP_PORT": str(server.port),
                "SMTP_FROM": "Contas <accounts@example.com>",
                "SMTP_USERNAME": "user",
                "SMTP_PASSWORD": "canary-smtp",
                "SSL_CERT_FILE": str(certificate),
            },
        )


def plain(server: MailServer) -> dict[str, str]:
    return {
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(server.port),
        "SMTP_FROM": "accounts@example.com",
        "SMTP_TLS": "none",
    }


@pytest.fixture
def production(database_url: str, keys: Path, smtp_settings: tuple[MailServer, dict[str, str]]) -> dict[str, str]:
    """A production in which all is well."""
    return smtp_settings[1] | {
        "APP_ENV": "production",
        "AUTH_BCRYPT_ROUNDS": "12",
        "SERVER_PUBLIC_URL": "https://accounts.example.com",
        "DATABASE_URL": database_url,
        "JWT_KEYS_DIR": str(keys),
    }


class TestReport:
    async def test_where_all_is_well_every_check_says_so(self, production: dict[str, str]) -> None:
        examined = await examine_async(**production)

        assert {it["status"] for it in examined.findings} == {"ok"}, examined.output
        checks = list(dict.fromkeys(it["check"] for it in examined.findings))
        disk = ["disk"] if "sqlite" in production["DATABASE_URL"] else []
        others = ["schema", "outbox", "keys", "secrets", "smtp", "clock", "proxy"]
        assert checks == ["settings", "database", "limits", *disk, *others]
        assert set(examined.findings[0]) == {"check", "status", "text", "advice"}

    async def test_people_read_a_line_for_each_finding(self, production: dict[str, str]) -> None:
        environment = production | {"APP_ENV": "development", "AUTH_AUTO_ACTIVATE": "true"}

        result = await asyncio.to_thread(run, "doctor", **environment)

        lines = result.stdout.splitlines()
        assert lines[0] == "ok       settings  They work, for APP_ENV=development."
        assert lines[1].startswith("warning  settings  AUTH_AUTO_ACTIVATE lets people claim")
        assert lines[1].endswith("unset it there.")
        assert result.exit_code == 0

    def test_a_problem_is_told_by_the_exit_code_to_people_as_well(self) -> None:
        result = run("doctor", DATABASE_URL="sqlite://")

        assert "problem  database  It is in memory" in result.stdout
        assert result.exit_code == 1

    async def test_looking_twice_changes_nothing(self, production: dict[str, str], keys: Path) -> None:
        before = files_in(keys)

        first, second = [await examine_async(**production) for _ in range(2)]

        assert [it for it in first.findings if it["check"] != "clock"] == [
            it for it in second.findings if it["check"] != "clock"
        ]
        assert files_in(keys) == before

    def test_what_nobody_foresaw_is_a_problem_and_no_traceback(self, keys: Path) -> None:
        examined = examine(DATABASE_URL="postgresql://u:canary@127.0.0.1:1/d?canary=canary", JWT_KEYS_DIR=str(keys))

        assert examined.of("database") == [("problem", "The check failed (TypeError). ")]
        assert examined.of("schema") == [("skipped", "Not checked: see database. ")]
        assert examined.of("keys")[0][0] == "ok"
        assert "canary" not in examined.output

    @pytest.mark.parametrize(
        "broken",
        [
            {"DATABASE_URL": "postgresql://u:canary@127.0.0.1:1/d"},
            {"DATABASE_URL": "postgresql://u:canary@canary@127.0.0.1:port/d"},
            {"DATABASE_URL": "postgresql://u@127.0.0.1:1/d?password=canary"},
            {"DATABASE_URL": "mysql://u:canary@h/d"},
            {"APP_ENV": "canary"},
            {"SMTP_PASSWORD": "canary-of-another"},
            {"SMTP_TLS": "implicit"},
            {"SMTP_PORT": "canary"},
        ],
    )
    @pytest.mark.parametrize("options", [(), ("--json",)])
    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_no_secret_is_printed_whatever_is_broken(
        self, production: dict[str, str], broken: dict[str, str], options: tuple[str, ...]
    ) -> None:
        result = await asyncio.to_thread(run, "doctor", *options, **production | broken)

        assert result.exit_code == 1
        assert "canary" not in result.output


NOWHERE = "SMTP_FROM=a@example.com SMTP_TLS=none SMTP_PORT=1 SMTP_HOST="

# What is set, the check that finds it, how bad it is, and some of what is said. `{here}` is an empty folder.
FINDINGS = [
    ("APP_ENV=production AUTH_AUTO_ACTIVATE=true", "settings", "problem", "unset it in production"),
    ("APP_ENV=development AUTH_AUTO_ACTIVATE=true", "settings", "warning", "Production refuses"),
    ("APP_ENV=development AUTH_AUTO_ACTIVATE=true", "settings", "warning", "AUTH_AUTO_ACTIVATE"),
    ("APP_ENV=development AUTH_RETURN_TOKEN_IN_RESPONSE=true", "settings", "warning", "Production refuses"),
    ("APP_ENV=development AUTH_RETURN_TOKEN_IN_RESPONSE=true", "settings", "warning", "AUTH_RETURN_TOKEN_IN_RESPONSE"),
    ("DATABASE_URL=sqlite+aiosqlite:///:memory:", "database", "problem", "Name a file"),
    ("DATABASE_URL=sqlite:////proc/users.db", "database", "problem", "cannot be written"),
    ("DATABASE_URL=sqlite:////dev/null/users.db", "database", "problem", "cannot be written"),
    ("DATABASE_URL=sqlite:////dev/null/new/users.db", "database", "problem", "cannot be written"),
    ("DATABASE_URL=sqlite:///{here}", "database", "problem", "cannot be written (Is a directory)"),
    ("DATABASE_URL=postgresql://u:p@ss@h:port/d", "database", "problem", "percent-encode"),
    ("JWT_KEYS_DIR=/proc/new", "keys", "problem", "must be writable"),
    ("SMTP_HOST=", "smtp", "warning", "Set SMTP_HOST and SMTP_FROM."),
    (f"{NOWHERE}127.0.0.1", "smtp", "problem", "refuses connections"),
    (f"{NOWHERE}mail.invalid", "smtp", "problem", "has a name that cannot be resolved"),
]


@pytest.mark.parametrize(("settings", "check", "status", "words"), FINDINGS)
def test_it_finds_what_is_wrong_and_tells(tmp_path: Path, settings: str, check: str, status: str, words: str) -> None:
    environment = dict(each.split("=", 1) for each in settings.format(here=tmp_path).split())

    examine(**environment).assert_worst_of(check, status, words)


class TestSettings:
    def test_each_that_does_not_work_is_a_problem_and_the_rest_is_not_checked(self) -> None:
        examined = examine(APP_ENV="nowhere", AUTH_PASSWORD_MIN_LENGTH="two")

        problems = examined.of("settings")
        assert [status for status, _ in problems] == ["problem", "problem"]
        assert problems[0][1].startswith("APP_ENV: ")
        assert problems[1][1].startswith("AUTH_PASSWORD_MIN_LENGTH: ")
        for check in ("database", "schema", "outbox", "keys", "smtp", "clock"):
            assert examined.of(check) == [("skipped", "Not checked: the settings do not work. ")]

    @pytest.mark.slow
    def test_a_file_that_is_not_text_is_a_problem(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_bytes(b"APP_ENV=\xff")

        result = subprocess.run(
            [sys.executable, "-m", "src", "doctor"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

        assert "problem  settings  .env cannot be read (UnicodeDecodeError)." in result.stdout
        assert result.returncode == 1

    @pytest.mark.parametrize(
        ("name", "value"), [("SERVER_PUBLIC_URL", "http://accounts.example.com"), ("AUTH_BCRYPT_ROUNDS", "9")]
    )
    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_what_is_unsafe_in_production_is_a_problem_there_alone(
        self, production: dict[str, str], name: str, value: str
    ) -> None:
        there = await examine_async(**production | {name: value})
        elsewhere = await examine_async(**production | {name: value, "APP_ENV": "development"})

        there.assert_worst_of("settings", "problem", name)
        assert [status for status, _ in elsewhere.of("settings")] == ["ok"]


class TestDatabase:
    def test_a_file_that_is_not_there_yet_is_a_warning_and_is_not_made(self, tmp_path: Path) -> None:
        examined = examine(DATABASE_URL=f"sqlite:///{tmp_path}/new/users.db", JWT_KEYS_DIR=f"{tmp_path}/keys")

        examined.assert_worst_of("database", "warning", "users.db yet. The first start makes it.")
        assert examined.of("schema") == [("skipped", "Not checked: there is no database yet. ")]
        assert examined.of("clock")[1:] == [("skipped", "Not checked: there is no database yet. ")]
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_is_no_database_is_a_problem(self, tmp_path: Path) -> None:
        path = shutil.copy(ROOT / "LICENSE", tmp_path)

        examine(DATABASE_URL=f"sqlite:///{path}").assert_worst_of("database", "problem", "file is not a database")
        assert Path(path).read_bytes() == (ROOT / "LICENSE").read_bytes()

    @pytest.mark.parametrize(("mode", "status"), [(0o644, "problem"), (0o640, "warning")])
    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_a_file_that_others_may_open_is_told(
        self, production: dict[str, str], database_url: str, mode: int, status: str
    ) -> None:
        path = database_url.removeprefix("sqlite:///")
        os.chmod(path, mode)  # noqa: PTH101 - in a moment, and nothing else runs

        examined = await examine_async(**production)

        examined.assert_worst_of("database", status, f"may open {path}. chmod 600 {path}.")

    def test_a_server_that_is_away_is_a_problem_and_what_needs_it_is_not_checked(self, keys: Path) -> None:
        examined = examine(DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing", JWT_KEYS_DIR=str(keys))

        examined.assert_worst_of("database", "problem", "does not answer", "Check DATABASE_URL")
        for check in ("schema", "outbox", "secrets"):
            assert examined.of(check) == [("skipped", "Not checked: the database does not answer. ")]
        assert examined.of("clock") == [
            ("ok", "No key is from the future. "),
            ("skipped", "Not checked: the database does not answer. "),
        ]

    def test_a_server_without_that_database_is_a_problem(self, postgresql: PostgreSQL) -> None:
        examine(DATABASE_URL=postgresql.url("nowhere")).assert_worst_of(
            "database", "problem", 'database "nowhere" does not exist'
        )

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_the_password_of_one_that_answers_is_not_printed(self, database_url: str) -> None:
        examined = await examine_async(DATABASE_URL=database_url.replace("postgres:@", "postgres:canary@"))

        assert examined.of("database") == [("ok", "PostgreSQL answers: migrated. ")]
        assert "canary" not in examined.output

    @pytest.mark.slow
    def test_a_server_that_hangs_is_given_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            examine(DATABASE_URL=f"postgresql://u@127.0.0.1:{port}/d").assert_worst_of(
                "database", "problem", "does not answer"
            )


class TestSchema:
    @pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
    async def test_a_server_without_tables_is_a_problem_and_is_left_so(self, empty_url: str) -> None:
        for _ in range(2):
            examined = await examine_async(DATABASE_URL=empty_url)

            assert examined.of("database")[0][0] == "ok"
            assert examined.of("schema") == [("problem", "There are no tables. Run `python -m src migrate`.")]
            skipped = ("skipped", "Not checked: the tables are not those that are needed. ")
            assert examined.of("outbox") == [skipped]
            assert skipped in examined.of("clock")
            assert examined.exit_code == 1

    @pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
    async def test_one_that_the_service_will_migrate_is_a_warning(self, empty_url: str) -> None:
        examined = await examine_async(DATABASE_URL=empty_url, DATABASE_AUTO_MIGRATE="true")

        expected = "There are no tables. The next start of the service migrates them."
        assert examined.of("schema") == [("warning", expected)]

    def test_a_file_without_tables_is_a_warning(self, tmp_path: Path) -> None:
        (tmp_path / "users.db").touch()

        examined = examine(DATABASE_URL=f"sqlite:///{tmp_path}/users.db")

        expected = "There are no tables. The next start of the service migrates them."
        assert examined.of("schema") == [("warning", expected)]

    async def test_one_that_is_behind_tells_where_it_is_and_where_it_must_be(self, empty_url: str) -> None:
        await migrate_at(empty_url)
        async with connected(empty_url) as database, writing(database) as session:
            await session.execute(text("UPDATE alembic_version SET version_num = :first"), {"first": FIRST_REVISION})

        examined = await examine_async(DATABASE_URL=empty_url)

        status = "warning" if empty_url.startswith("sqlite") else "problem"
        said = f"The tables are those of {FIRST_REVISION}; this version needs {head()}."
        examined.assert_worst_of("schema", status, said)

    async def test_one_of_a_later_version_is_no_problem_and_is_looked_into(self, empty_url: str) -> None:
        await migrate_at(empty_url)
        async with connected(empty_url) as database, writing(database) as session:
            await session.execute(text("UPDATE alembic_version SET version_num = 'of-later'"))

        examined = await examine_async(DATABASE_URL=empty_url)

        examined.assert_worst_of("schema", "warning", "a later version (of-later)")
        assert examined.of("outbox") == [("ok", "No email is stuck. ")]


class TestOutbox:
    async def test_emails_that_are_stuck_are_a_warning(self, database: AsyncDatabaseManager, database_url: str) -> None:
        await add_email(database, "dead@example.com", OutboxStatus.DEAD, 25)
        await add_email(database, "dead-too@example.com", OutboxStatus.DEAD, 25)
        await add_email(database, "waiting@example.com", OutboxStatus.QUEUED, 0)

        (await examine_async(DATABASE_URL=database_url)).assert_worst_of(
            "outbox", "warning", "do not get out: 2.", "python -m src outbox list"
        )


class TestKeys:
    def test_it_tells_which_sign_and_how_old_they_are(self, tmp_path: Path) -> None:
        rotate_ago(tmp_path, 30 * DAY)
        access, refresh = rotate_ago(tmp_path, 12 * DAY)
        encryption = load_keys(tmp_path).encryption[-1]

        assert examine(JWT_KEYS_DIR=str(tmp_path)).of("keys") == [
            ("ok", f"Access tokens are signed by {access}, 12 days old. "),
            ("ok", f"Refresh tokens are signed by {refresh}, 12 days old. "),
            ("ok", f"Second factors are encrypted by {encryption.id}, 12 days old. "),
            ANY,
        ]

    def test_it_shows_the_ids_that_every_replica_must_show(self, tmp_path: Path) -> None:
        for days in (30, 12):
            rotate_ago(tmp_path, days * DAY)
        ids = [key.id for kind in load_keys(tmp_path) for key in kind]

        status, told = examine(JWT_KEYS_DIR=str(tmp_path)).of("keys")[-1]

        assert status == "ok"
        assert f"one folder, {tmp_path}" in told
        assert f"on each: {', '.join(ids)}." in told

    def test_one_that_will_sign_is_well(self, keys: Path) -> None:
        new, _, _ = rotate(keys, "ES256")

        status, told = examine(JWT_KEYS_DIR=str(keys)).of("keys")[0]

        assert status == "ok"
        assert f"12 days old; {new.id} from {new.signs_from:%Y-%m-%d %H:%M:%S} UTC on." in told

    def test_one_whose_name_tells_no_age_is_well(self, keys: Path) -> None:
        [path] = keys.glob("*.pem")
        path.rename(keys / "mine.pem")

        status, told = examine(JWT_KEYS_DIR=str(keys)).of("keys")[0]

        assert status == "ok"
        assert "whose name does not tell its age" in told

    def test_none_is_a_warning_in_development_and_none_is_made(self, tmp_path: Path) -> None:
        examined = examine(JWT_KEYS_DIR=f"{tmp_path}/keys")

        examined.assert_worst_of("keys", "warning", "The first start makes some for development.")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("missing", "named"),
        [("*.pem", "no ES256 key"), ("*.secret", "no refresh secret"), ("*.key", "no encryption key")],
    )
    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_a_kind_that_is_missing_is_a_problem_in_production_and_is_named(
        self, production: dict[str, str], keys: Path, missing: str, named: str
    ) -> None:
        for path in files_in(keys):
            if path.match(missing):
                path.unlink()

        examined = await examine_async(**production)

        examined.assert_worst_of("keys", "problem", f"There is {named} ({missing}) in", "python -m src keys rotate")

    def test_one_of_another_algorithm_does_not_sign(self, keys: Path) -> None:
        examine(JWT_KEYS_DIR=str(keys), JWT_ALGORITHM="EdDSA").assert_worst_of(
            "keys", "warning", "There is no EdDSA key"
        )

    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_generated_ones_are_a_problem_in_production_alone(
        self, production: dict[str, str], tmp_path: Path
    ) -> None:
        folder = tmp_path / "generated"
        KeyRing(folder, "ES256", may_generate=True).access_signer()

        there = await examine_async(**production | {"JWT_KEYS_DIR": str(folder)})
        elsewhere = await examine_async(**production | {"JWT_KEYS_DIR": str(folder), "APP_ENV": "development"})

        problems = [told for status, told in there.of("keys") if status == "problem"]
        assert [told.split(" ")[0] for told in problems] == [
            str(folder / "development-es256.pem"),
            str(folder / "development.secret"),
            str(folder / "development.key"),
        ]
        assert {status for status, _ in elsewhere.of("keys")} == {"ok"}
        assert there.exit_code == 1

    @pytest.mark.parametrize(("mode", "status", "who"), [(0o604, "problem", "Everyone"), (0o640, "warning", "A group")])
    @pytest.mark.parametrize("pattern", ["*.pem", "*.secret", "*.key"])
    def test_a_file_that_others_may_open_is_told(
        self, keys: Path, mode: int, status: str, who: str, pattern: str
    ) -> None:
        [path] = keys.glob(pattern)
        path.chmod(mode)

        found = examine(JWT_KEYS_DIR=str(keys)).worst_of("keys")

        assert found == (status, f"{who} on this machine may open {path}. chmod 600 {path}.")
        assert stat.S_IMODE(path.stat().st_mode) == mode

    def test_a_file_that_kubernetes_mounts_is_told_with_its_setting(self, keys: Path, tmp_path: Path) -> None:
        [path] = keys.glob("*.pem")
        target = path.rename(tmp_path / "mounted")
        target.chmod(0o644)
        path.symlink_to(target)

        examine(JWT_KEYS_DIR=str(keys)).assert_worst_of("keys", "problem", str(path), "defaultMode: 0400")

    @pytest.mark.parametrize("name", ["broken.pem", "broken-20269999T999999Z.secret"])
    def test_a_file_that_is_no_key_is_a_problem_and_the_clock_is_not_compared_with_it(
        self, keys: Path, name: str
    ) -> None:
        (keys / name).write_text("not a key, and long enough to be a secret")

        examined = examine(JWT_KEYS_DIR=str(keys))

        examined.assert_worst_of("keys", "problem", "They cannot be read")
        assert examined.of("clock")[0] == ("skipped", "Not checked: the keys cannot be read. ")


async def add_factor(database: AsyncDatabaseManager, folder: Path, email: str) -> None:
    [user_id] = await add_users(database, {"email": email})
    await store_second_factor(database, Encryption(make_ring(folder, may_generate=False)), user_id)


class TestSecrets:
    async def test_those_of_the_current_key_are_well(
        self, database: AsyncDatabaseManager, database_url: str, keys: Path
    ) -> None:
        await add_factor(database, keys, "ana@example.com")

        examined = await examine_async(DATABASE_URL=database_url, JWT_KEYS_DIR=str(keys))

        assert examined.of("secrets") == [("ok", "No second factor needs another key than the current one. ")]

    async def test_those_of_an_older_key_are_well_and_it_tells_what_to_do_before_that_is_retired(
        self, database: AsyncDatabaseManager, database_url: str, keys: Path
    ) -> None:
        await add_factor(database, keys, "ana@example.com")
        rotate_ago(keys, DAY)

        [(status, told)] = (await examine_async(DATABASE_URL=database_url, JWT_KEYS_DIR=str(keys))).of("secrets")

        assert status == "ok"
        assert "have encrypted: 1." in told
        assert "python -m src keys reencrypt" in told

    async def test_a_key_that_is_missed_is_a_problem_and_is_named(
        self, database: AsyncDatabaseManager, database_url: str, keys: Path
    ) -> None:
        await add_factor(database, keys, "ana@example.com")
        [lost] = load_keys(keys).encryption
        rotate_ago(keys, DAY)
        lost.path.unlink()

        examined = await examine_async(DATABASE_URL=database_url, JWT_KEYS_DIR=str(keys))

        examined.assert_worst_of("secrets", "problem", f"The encryption key {lost.id} is not in {keys}", "need it: 1.")

    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_without_any_key_all_are_missed(
        self, database: AsyncDatabaseManager, database_url: str, keys: Path
    ) -> None:
        await add_factor(database, keys, "ana@example.com")
        for key in load_keys(keys).encryption:
            key.path.unlink()

        examined = await examine_async(DATABASE_URL=database_url, JWT_KEYS_DIR=str(keys))

        examined.assert_worst_of("secrets", "problem", "Put its file back")


class TestSmtp:
    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_none_is_a_problem_in_production(self, production: dict[str, str]) -> None:
        examined = await examine_async(**production | {"SMTP_HOST": ""})

        assert examined.worst_of("smtp")[0] == "problem"

    def test_a_server_that_takes_the_log_in_is_well_and_gets_no_email(
        self, smtp_settings: tuple[MailServer, dict[str, str]]
    ) -> None:
        server, environment = smtp_settings

        [(status, told)] = examine(**environment).of("smtp")

        assert status == "ok"
        assert "would take emails after the log-in (SMTP_TLS=starttls)" in told
        assert (server.tried > 0, server.emails) == (True, [])

    def test_one_without_log_in_is_well(self) -> None:
        with MailServer() as server:
            [(status, told)] = examine(**plain(server)).of("smtp")

        assert status == "ok"
        assert "without a log-in (SMTP_TLS=none)" in told

    def test_a_sender_in_any_script_is_well(self) -> None:
        with MailServer() as server:
            examined = examine(**plain(server) | {"SMTP_FROM": "josé@example.com"})

        assert examined.of("smtp")[0][0] == "ok"

    def test_a_wrong_password_is_a_problem(self, smtp_settings: tuple[MailServer, dict[str, str]]) -> None:
        _, environment = smtp_settings

        examine(**environment | {"SMTP_PASSWORD": "guess"}).assert_worst_of(
            "smtp", "problem", "refuses the log-in (535). Check SMTP_USERNAME and SMTP_PASSWORD."
        )

    def test_no_log_in_where_one_is_wanted_is_a_problem(self, smtp_settings: tuple[MailServer, dict[str, str]]) -> None:
        _, environment = smtp_settings

        examine(**environment | {"SMTP_USERNAME": ""}).assert_worst_of("smtp", "problem", "wants a log-in")

    def test_a_sender_that_the_server_does_not_know_is_a_problem(self) -> None:
        with MailServer() as server:
            server.becomes("knows nobody")
            examine(**plain(server)).assert_worst_of("smtp", "problem", "refuses the sender (550). Check SMTP_FROM")

    @pytest.mark.slow
    def test_a_server_that_is_slow_at_each_step_is_given_up_after_ten_seconds(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            environment = plain(MailServer()) | {"SMTP_PORT": str(listener.getsockname()[1])}
            with greeting_late(listener):
                began_at = time.monotonic()
                examine(**environment).assert_worst_of("smtp", "problem", "did not answer within 10 seconds")
        assert time.monotonic() - began_at < 13

    def test_a_server_that_hangs_up_is_a_problem(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            environment = plain(MailServer()) | {"SMTP_PORT": str(listener.getsockname()[1])}
            with hanging_up(listener):
                examine(**environment).assert_worst_of("smtp", "problem", "cannot be used")

    @pytest.mark.parametrize("tls", ["starttls", "implicit"])
    def test_a_certificate_that_nobody_vouches_for_is_a_problem(self, tmp_path: Path, tls: str) -> None:
        certificate = make_certificate(tmp_path)
        with MailServer(tls=tls_of(certificate), is_implicit=tls == "implicit") as server:
            examine(**plain(server) | {"SMTP_TLS": tls}).assert_worst_of(
                "smtp", "problem", "offers no TLS that can be trusted", "self-signed certificate"
            )

    @pytest.mark.parametrize(
        ("tls", "why"), [("starttls", "STARTTLS extension not supported"), ("implicit", "offers no TLS")]
    )
    def test_a_server_without_tls_is_a_problem_where_tls_is_set(self, tls: str, why: str) -> None:
        with MailServer() as server:
            examine(**plain(server) | {"SMTP_TLS": tls}).assert_worst_of("smtp", "problem", why, "SMTP_TLS")


async def set_clock(url: str, ahead: timedelta) -> None:
    """Sessions of the database find our clock before the server's own."""
    async with connected(url) as database, writing(database) as session:
        for statement in (
            "CREATE SCHEMA wrong",
            "CREATE FUNCTION wrong.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
            f"$$ SELECT pg_catalog.clock_timestamp() + interval '{ahead.total_seconds()} seconds' $$",
            "ALTER DATABASE empty SET search_path = wrong, public, pg_catalog",
        ):
            await session.execute(text(statement))


class TestRoom:
    def test_more_requests_than_descriptors_are_a_warning(self, tmp_path: Path) -> None:
        examined = examine(DATABASE_URL=f"sqlite:///{tmp_path}/users.db", SERVER_MAX_REQUESTS="99000000")

        status, told = examined.of("limits")[0]
        assert status == "warning"
        assert "99000" in told
        assert "ulimit -n" in told

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_more_connections_than_postgresql_has_are_a_problem(self, database_url: str) -> None:
        examined = await examine_async(DATABASE_URL=database_url, DATABASE_POOL_SIZE="60", WEB_CONCURRENCY="2")

        examined.assert_worst_of(
            "limits", "problem", "room for 0 replicas", "60 connections for each of 2 workers", "PgBouncer"
        )

    def test_a_disk_that_is_nearly_full_is_a_warning(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage("/")._replace(free=1024**2)
        monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)

        examined = examine(DATABASE_URL=f"sqlite:///{tmp_path}/users.db")

        examined.assert_worst_of("disk", "warning", "0.0 GiB are free", "Make room")


class TestClock:
    @pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
    @pytest.mark.parametrize(
        ("seconds", "status"),
        [(2, "ok"), (-2, "ok"), (20, "warning"), (-20, "warning"), (90, "problem"), (-90, "problem")],
    )
    async def test_a_database_whose_clock_goes_otherwise_is_told(
        self, empty_url: str, seconds: int, status: str
    ) -> None:
        await set_clock(empty_url, timedelta(seconds=seconds))

        examined = await examine_async(DATABASE_URL=empty_url)

        [(found, told)] = [clock for clock in examined.of("clock") if "apart" in clock[1]]
        assert found == status
        assert f"and the database's are {abs(seconds)}." in told
        assert ("NTP" in told) == (status != "ok")

    async def test_a_database_whose_clock_is_right_is_well(self, database_url: str) -> None:
        told = (await examine_async(DATABASE_URL=database_url)).of("clock")

        of_database = (
            []
            if database_url.startswith("sqlite")
            else [("ok", "This machine's clock and the database's are 0.0 seconds apart. ")]
        )
        assert told == [("ok", "No key is from the future. "), *of_database, ("ok", "No user is from the future. ")]

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_a_key_from_the_future_is_a_warning(self, keys: Path, index: int) -> None:
        new = rotate(keys, "ES256")[index].path
        future = new.rename(new.with_name(new.name.replace(f"{utc_now():%Y}", "2999")))

        status, told = examine(JWT_KEYS_DIR=str(keys)).of("clock")[0]

        assert status == "warning"
        assert f"{future.name} is from the future" in told

    def test_a_key_of_this_moment_is_well(self, keys: Path) -> None:
        rotate(keys, "ES256")

        assert examine(JWT_KEYS_DIR=str(keys)).of("clock")[0] == ("ok", "No key is from the future. ")

    @pytest.mark.parametrize(("ahead", "status"), [(0, "ok"), (60, "warning")])
    async def test_a_user_from_the_future_is_a_warning(self, database_url: str, ahead: int, status: str) -> None:
        made_at = utc_now() + timedelta(seconds=ahead)
        async with connected(database_url) as database, writing(database) as session:
            session.add(UserModel(email="old@example.com", hashed_password="-", created_at=utc_now() - DAY))
            await session.flush()
            session.add(UserModel(email="ana@example.com", hashed_password="-", created_at=made_at))

        found, told = (await examine_async(DATABASE_URL=database_url)).of("clock")[-1]

        assert found == status
        assert (f"{made_at:%Y-%m-%d %H:%M:%S} UTC" in told) == bool(ahead)


class TestProxy:
    def test_it_tells_whose_word_is_taken_for_where_people_are(self) -> None:
        assert examine(FORWARDED_ALLOW_IPS="10.0.0.0/24").of("proxy") == [
            ("ok", "X-Forwarded-For is believed from 10.0.0.0/24. ")
        ]

    def test_uvicorn_believes_this_machine_unless_told_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)

        assert examine().of("proxy") == [("ok", "X-Forwarded-For is believed from 127.0.0.1. ")]

    def test_to_believe_everybody_is_a_warning(self) -> None:
        examined = examine(FORWARDED_ALLOW_IPS="*")

        examined.assert_worst_of("proxy", "warning", "anyone can forge", "10.0.0.0/24", "docs/behind-a-proxy.md")
