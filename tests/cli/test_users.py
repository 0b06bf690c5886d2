"""Accounts as operators look after them: `python -m src create-admin` and `python -m src users`."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from select import POLLIN, poll
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, select
from typer.testing import Result

from src.core.keys import load_keys
from src.core.passwords import hash_password
from src.core.users import UserRecord
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import AuditEventModel, OutboxEmailModel, SecondFactorModel, UserModel
from tests.support.databases import connected
from tests.support.factories import add_users
from tests.support.processes import ROOT, run
from tests.support.second_factor import add_second_factor
from tests.support.service import Service, serve
from tests.support.steps import (
    PASSWORD,
    activate,
    create_account,
    create_admin,
    log_in,
    me,
    post_log_in,
    sign_up,
    token_of,
)

ADMIN = "admin@example.com"


async def cli(url: str, *arguments: str, stdin: str | bytes | None = None, **environment: str) -> Result:
    return await asyncio.to_thread(run, *arguments, stdin=stdin, DATABASE_URL=url, **environment)


async def users(url: str, *arguments: str, **options: Any) -> Result:
    return await cli(url, "users", *arguments, **options)


async def make_admin(url: str, *options: str, password: str | bytes = PASSWORD, **environment: str) -> Result:
    return await cli(url, "create-admin", ADMIN, "--password-stdin", *options, stdin=password, **environment)


def production(folder: Path) -> dict[str, str]:
    """An environment that production does not refuse; its keys are still to be made."""
    return {
        "APP_ENV": "production",
        "AUTH_BCRYPT_ROUNDS": "12",
        "SERVER_PUBLIC_URL": "https://accounts.example.com",
        "JWT_KEYS_DIR": str(folder / "keys"),
    }


async def find_events(database: AsyncDatabaseManager) -> list[tuple[Any, ...]]:
    """Kind, outcome, reason, on whom, who, changes and origin of each, in the order of time."""
    event = AuditEventModel
    columns = (event.kind, event.outcome, event.reason, event.user_id, event.actor_id, event.changes, event.origin)
    async with database.session() as session:
        return [tuple(row) for row in (await session.execute(select(*columns).order_by(event.id))).all()]


async def find_user(database: AsyncDatabaseManager, id_: str) -> UserModel | None:
    async with database.session() as session:
        return await session.get(UserModel, UUID(id_))


class Terminal:
    """A command at a terminal of its own, and what stands on it."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._end, other_end = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "src", *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            start_new_session=True,
        )
        os.close(other_end)
        self._output = poll()
        self._output.register(self._end, POLLIN)
        self.screen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._end)

    def type_after(self, prompt: str, text: str) -> None:
        """Wait for the prompt: what is typed before it is shown, as nobody has told the terminal yet not to."""
        before = len(self.screen)
        while prompt not in self.screen[before:]:
            shown = self._read()
            assert shown, f"The command has ended:\n{self.screen}"
            self.screen += shown
        os.write(self._end, text.encode())

    def finish(self) -> int:
        while shown := self._read():
            self.screen += shown
        return self._process.wait(10)

    def _read(self) -> str:
        assert self._output.poll(30_000), f"Nothing happens any more:\n{self.screen}"
        try:
            return os.read(self._end, 4096).decode()
        except OSError:  # Linux says so at the end
            return ""


class TestCreateAdmin:
    async def test_the_first_administrator_of_a_fresh_database_logs_in_and_lists_users(self, empty_url: str) -> None:
        made = await make_admin(empty_url, DATABASE_AUTO_MIGRATE="true")

        assert (made.exit_code, made.stderr) == (0, "")
        async with connected(empty_url) as database, serve(database) as service:
            admin = await log_in(service, ADMIN)
            listed = await service.client.get("/api/users?limit=10", headers=admin.bearer)
        assert [(user["id"], user["email"], user["is_admin"]) for user in listed.json()["items"]] == [
            (admin.user_id, ADMIN, True)
        ]
        assert made.stdout == f"{ADMIN} is an administrator: {admin.user_id}\n"

    @pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)
    async def test_on_a_fresh_server_that_others_migrate_it_says_what_to_run(self, empty_url: str) -> None:
        refused = await make_admin(empty_url)

        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "run `python -m src migrate`" in refused.stderr

    @pytest.mark.slow
    def test_it_asks_for_the_password_twice_and_never_shows_it(self, migrated_sqlite_copy: str) -> None:
        with Terminal("create-admin", ADMIN, DATABASE_URL=migrated_sqlite_copy) as terminal:
            terminal.type_after("Password: ", f"{PASSWORD}\n")
            terminal.type_after("Repeat for confirmation: ", f"{PASSWORD}\n")
            exit_code = terminal.finish()

        assert exit_code == 0
        assert f"{ADMIN} is an administrator: " in terminal.screen
        assert PASSWORD not in terminal.screen

    async def test_two_passwords_that_differ_are_asked_for_again(self, database_url: str) -> None:
        typed = f"{PASSWORD}\nanother-{PASSWORD}\n"

        result = await cli(database_url, "create-admin", ADMIN, stdin=typed)

        assert result.exit_code == 1  # the terminal was closed at the next question
        assert "do not match" in result.stderr
        assert PASSWORD not in result.output
        assert (await users(database_url, "list")).output == ""

    async def test_from_standard_input_the_password_is_one_line(self, service: Service, database_url: str) -> None:
        made = await make_admin(database_url, "--json", password=f" {PASSWORD} \r\nnext line\n")

        admin = await log_in(service, ADMIN, f" {PASSWORD} ")
        assert made.stdout == f'{{"user_id":"{admin.user_id}"}}\n'

    async def test_a_password_that_nobody_should_or_could_use_is_refused(
        self, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        reasons = {
            b"": "must have at least 12 characters",
            b"short": "must have at least 12 characters",
            b"123456789012": "is one of the passwords that attackers try first",
            ADMIN.encode(): "must not be the e-mail address",
            b"x" * 1025: "must have at most 1024 characters",
            b"\xff" * 12: "contains characters that UTF-8 cannot encode",
        }

        results = {password: await make_admin(database_url, password=password) for password in reasons}

        assert {(each.exit_code, each.stdout) for each in results.values()} == {(1, "")}
        assert {password: each.stderr for password, each in results.items()} == {
            password: f"The password {reason}.\n" for password, reason in reasons.items()
        }
        assert (await users(database_url, "list")).output == ""
        assert {event[:2] for event in await find_events(database)} == {("user_creation", "failure")}

    async def test_an_address_that_has_an_account_keeps_its_password_and_is_told_of_promotion(
        self, service: Service, database_url: str
    ) -> None:
        await create_account(service, ADMIN, password="the-password-of-its-owner")

        refused = await make_admin(database_url)

        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr == (
            f"{ADMIN} has an account. To make that an administrator, repeat the command with --promote.\n"
        )
        owner = await log_in(service, ADMIN, "the-password-of-its-owner")
        assert (await me(service, owner)).json()["is_admin"] is False

    async def test_promotion_makes_an_account_an_administrator_and_asks_for_nothing(
        self, service: Service, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        id_ = await create_account(service, ADMIN)
        await users(database_url, "disable", ADMIN)

        promoted = await cli(database_url, "create-admin", "Admin@EXAMPLE.com", "--promote", "--json")

        assert (promoted.exit_code, promoted.output) == (0, f'{{"user_id":"{id_}"}}\n')
        assert (await me(service, await log_in(service, ADMIN))).json()["is_admin"] is True
        changes = "is_active=true is_admin=true"
        assert ("user_update", "success", None, UUID(id_), None, changes, "command line") in await find_events(database)

    async def test_promotion_needs_an_account(self, service: Service, database_url: str) -> None:
        await sign_up(service, ADMIN)

        refused = await cli(database_url, "create-admin", ADMIN, "--promote")

        assert (refused.exit_code, refused.output) == (1, "No account has this address.\n")

    def test_promotion_takes_no_password(self) -> None:
        assert run("create-admin", ADMIN, "--promote", "--password-stdin", stdin=PASSWORD).exit_code == 2

    def test_what_is_no_address_is_a_usage_error(self) -> None:
        refused = run("create-admin", "admin", "--password-stdin", stdin=PASSWORD)

        assert refused.exit_code == 2
        assert "has no @" in refused.stderr

    async def test_production_takes_no_local_address(self, database_url: str, tmp_path: Path) -> None:
        command = ("create-admin", "admin@corp.local", "--password-stdin")

        refused = await cli(database_url, *command, stdin=PASSWORD, **production(tmp_path))

        assert refused.exit_code == 1
        assert "local networks" in refused.stderr
        assert (await users(database_url, "list")).output == ""

    async def test_sign_ups_that_wait_for_the_address_end(
        self, service: Service, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        squatter = await sign_up(service, ADMIN)

        await make_admin(database_url)

        assert await find_user(database, squatter["user_id"]) is None
        assert (await activate(service, token_of(squatter["activation_url"]))).status_code == 400

    async def test_the_event_is_the_operators(self, database_url: str, database: AsyncDatabaseManager) -> None:
        made = await make_admin(database_url, "--json")
        await make_admin(database_url)

        id_ = UUID(json.loads(made.stdout)["user_id"])
        assert await find_events(database) == [
            ("user_creation", "success", None, id_, None, "is_admin=true", "command line"),
            ("user_creation", "failure", "USER_EMAIL_TAKEN", id_, None, "is_admin=true", "command line"),
        ]


class TestListAndShow:
    async def test_each_filter_keeps_those_whom_it_names(
        self, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        await add_users(
            database,
            {"email": "ana@example.com", "name": "Ana Émile"},
            {"email": "ben@example.com", "is_admin": True},
            {"email": "cleo@example.com", "name": "Cleo", "is_active": False},
            {"email": "dora@example.com", "is_active": False, "activated_at": None},
        )
        expected = {
            (): "ana ben cleo",
            ("--email", "BEN@Example.com"): "ben",
            ("--name", "émile"): "ana",
            ("--name", "%"): "",
            ("--active",): "ana ben",
            ("--inactive",): "cleo",
            ("--admin",): "ben",
            ("--pending",): "dora",
            ("--newest",): "cleo ben ana",
            ("--newest", "--limit", "1"): "cleo",
            ("--limit", "2"): "ana ben",
            ("--active", "--admin", "--email", "ana@example.com"): "",
        }

        results = {options: await users(database_url, "list", "--json", *options) for options in expected}

        found = {options: [user["email"] for user in json.loads(each.stdout)] for options, each in results.items()}
        assert {options: " ".join(email.partition("@")[0] for email in each) for options, each in found.items()} == (
            expected
        )

    async def test_it_goes_on_over_a_thousand(self, database_url: str, database: AsyncDatabaseManager) -> None:
        people = [{"email": f"{i}@example.com", "hashed_password": "x", "activated_at": utc_now()} for i in range(1003)]
        async with database.session() as session:
            await session.execute(insert(UserModel), people)
            await session.commit()

        listed = await users(database_url, "list", "--limit", "1002", "--newest", "--json")

        assert [user["email"] for user in json.loads(listed.stdout)] == [f"{i}@example.com" for i in range(1002, 0, -1)]

    async def test_a_person_reads_a_line_for_each(self, database_url: str, database: AsyncDatabaseManager) -> None:
        ana, ben, cleo = await add_users(
            database,
            {"email": "ana@example.com", "name": "Ana"},
            {"email": "ben@example.com", "is_admin": True},
            {"email": "cleo@example.com", "is_active": False},
        )

        lines = (await users(database_url, "list")).stdout.splitlines()

        assert [line.split("  created ")[0].split() for line in lines] == [
            [ana, "active"],
            [ben, "active", "admin"],
            [cleo, "disabled"],
        ]
        assert lines[0].endswith("  ana@example.com  Ana")

    async def test_programs_get_every_field_but_the_hash(
        self, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        hashed_password = hash_password(PASSWORD, 4)
        (id_,) = await add_users(
            database, {"email": "ana@example.com", "name": "Ana", "hashed_password": hashed_password}
        )

        shown = await users(database_url, "show", id_, "--json")
        listed = await users(database_url, "list", "--json")

        record = json.loads(shown.stdout)
        assert record.keys() == {"second_factor", *(field.name for field in fields(UserRecord))}
        times = {name: record.pop(name) for name in ("activated_at", "created_at", "updated_at")}
        assert record == {"second_factor": False} | {
            "id": id_,
            "email": "ana@example.com",
            "name": "Ana",
            "is_active": True,
            "is_admin": False,
            "last_login_at": None,
        }
        assert all(time.endswith("Z") for time in times.values())
        assert json.loads(shown.stdout) == json.loads(listed.stdout)[0] | {"second_factor": False}

    async def test_a_user_is_found_by_id_and_an_account_by_any_spelling_of_its_address(
        self, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        pending, ana = await add_users(
            database,
            {"email": "ana@example.com", "is_active": False, "activated_at": None},
            {"email": "ana@example.com", "is_admin": True},
        )

        shown = [await users(database_url, "show", who) for who in ("Ana@Example.COM", ana, pending)]

        assert [each.stdout.splitlines()[0].split() for each in shown] == [["id", ana], ["id", ana], ["id", pending]]
        assert [each.stdout.splitlines()[4].split() for each in shown[1:]] == [["is_admin", "yes"], ["is_admin", "no"]]

    @pytest.mark.parametrize("command", ["show", "disable", "enable", "delete", "reset-second-factor"])
    async def test_a_user_who_is_not_there_is_one_sentence(self, database_url: str, command: str) -> None:
        results = [await users(database_url, command, who) for who in (str(uuid4()), "nobody@example.com", "nobody")]

        assert [each.exit_code for each in results] == [1, 1, 2]
        assert [each.output for each in results[:2]] == ["There is no such user.\n", "No account has this address.\n"]
        assert "is neither the id of a user nor an e-mail address" in results[2].stderr


class TestChanges:
    async def test_who_has_lost_the_second_factor_logs_in_without_it(
        self, service: Service, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        id_ = await create_account(service)
        ana = await log_in(service)
        await add_second_factor(service, id_)

        before = json.loads((await users(database_url, "show", id_, "--json")).stdout)
        done = await users(database_url, "reset-second-factor", "ana@example.com")
        again = await users(database_url, "reset-second-factor", "ana@example.com")

        assert before["second_factor"] is True
        assert done.output.startswith("ana@example.com logs in with the password alone")
        assert again.exit_code == 1
        assert [(await me(service, ana)).status_code, (await post_log_in(service)).status_code] == [401, 200]
        event = ("second_factor_removal", "success", None, UUID(id_), None, None, "command line")
        assert event in await find_events(database)

    async def test_disabling_logs_a_user_out_until_they_are_enabled(
        self, service: Service, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        id_ = await create_account(service)
        ana = await log_in(service)

        disabled = await users(database_url, "disable", "ana@example.com")
        while_disabled = [(await me(service, ana)).status_code, (await post_log_in(service)).status_code]
        enabled = await users(database_url, "enable", id_)

        assert disabled.output == "ana@example.com is disabled, and logged out everywhere.\n"
        assert while_disabled == [401, 401]
        assert enabled.output == "ana@example.com can log in.\n"
        assert [(await me(service, ana)).status_code, (await post_log_in(service)).status_code] == [401, 200]
        changes = [event for event in await find_events(database) if event[0] == "user_update"]
        assert changes == [
            ("user_update", "success", None, UUID(id_), None, f"is_active={state}", "command line")
            for state in ("false", "true")
        ]

    @pytest.mark.parametrize("command", [("disable",), ("delete", "--yes")], ids=["disable", "delete"])
    async def test_the_last_administrator_stays(
        self, service: Service, database_url: str, database: AsyncDatabaseManager, command: Sequence[str]
    ) -> None:
        admin = await create_admin(service)

        refused = await users(database_url, *command, ADMIN)

        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr == "Nobody else is an active administrator: make somebody else one first.\n"
        assert (await me(service, admin)).status_code == 200
        assert ("failure", "LAST_ADMIN") in {event[1:3] for event in await find_events(database)}

    async def test_a_sign_up_that_waits_can_only_be_deleted(
        self, service: Service, database_url: str, database: AsyncDatabaseManager
    ) -> None:
        id_ = (await sign_up(service))["user_id"]

        refused = await users(database_url, "enable", id_)
        deleted = await users(database_url, "delete", id_, "--yes")

        assert refused.output == (
            "The address of this user is not confirmed yet: until it is, they can only be deleted.\n"
        )
        assert (refused.exit_code, deleted.exit_code) == (1, 0)
        assert await find_user(database, id_) is None

    async def test_deleting_asks_first(self, database_url: str, database: AsyncDatabaseManager) -> None:
        (id_,) = await add_users(database, {"email": "ana@example.com"})

        answers = {answer: await users(database_url, "delete", id_, stdin=answer) for answer in ("", "n\n")}
        kept = await find_user(database, id_)
        meant = await users(database_url, "delete", id_, stdin="y\n")

        assert [each.exit_code for each in answers.values()] == [1, 1]
        assert kept is not None
        assert meant.exit_code == 0
        assert meant.stdout.endswith("ana@example.com is deleted.\n")
        assert f"Delete ana@example.com ({id_}) for good?" in meant.stderr
        assert await find_user(database, id_) is None

    @pytest.mark.parametrize("smtp_host", ["", "mail.example.com"])
    async def test_whoever_is_deleted_is_told_where_smtp_is_configured(
        self, database_url: str, database: AsyncDatabaseManager, smtp_host: str
    ) -> None:
        (id_,) = await add_users(database, {"email": "ana@example.com"})

        await users(database_url, "delete", id_, "--yes", SMTP_HOST=smtp_host, SMTP_FROM="accounts@example.com")

        async with database.session() as session:
            emails = (await session.execute(select(OutboxEmailModel.kind, OutboxEmailModel.to_email))).all()
        assert [tuple(email) for email in emails] == ([("account_removed", "ana@example.com")] if smtp_host else [])


def person(email: str, **values: Any) -> str:
    return json.dumps({"email": email, "hashed_password": "$2y$04$" + "a" * 21 + "u" + "b" * 31} | values) + "\n"


class TestImport:
    """What an import does with the lines is told in tests/services/test_imports.py."""

    async def test_a_file_is_imported_and_every_bad_line_is_told(self, database_url: str, tmp_path: Path) -> None:
        file = tmp_path / "people.jsonl"
        file.write_text(person("ana@example.com") + person("canary") + person("ANA@example.com"))

        imported = await users(database_url, "import", str(file))

        assert (imported.exit_code, imported.stdout) == (1, "Imported 1, unchanged 1, refused 1.\n")
        assert imported.stderr == "line 2: email: has no @, as in name@example.com\n"
        assert "  ana@example.com" in (await users(database_url, "list")).stdout

    async def test_standard_input_is_imported_and_counted_in_json(self, database_url: str) -> None:
        lines = person("ana@example.com") + person("ben@example.com")

        imported = await users(database_url, "import", "-", "--json", stdin=lines)

        assert (imported.exit_code, imported.output) == (0, '{"imported":2,"unchanged":0,"refused":0}\n')

    async def test_a_dry_run_says_what_would_be_done(self, database_url: str) -> None:
        lines = person("ana@example.com") + person("ana@example.com")

        looked = await users(database_url, "import", "-", "--dry-run", stdin=lines)

        assert (looked.exit_code, looked.output) == (0, "Would import 1, unchanged 1, refused 0.\n")
        assert (await users(database_url, "list")).output == ""

    async def test_a_second_factor_is_imported_with_the_keys_of_the_service(
        self, database_url: str, tmp_path: Path
    ) -> None:
        line = person("ana@example.com", totp_secret="JBSWY3DPEHPK3PXP")

        imported = await users(database_url, "import", "-", stdin=line, JWT_KEYS_DIR=str(tmp_path / "keys"))

        [key] = load_keys(tmp_path / "keys").encryption
        assert imported.exit_code == 0, imported.output
        async with connected(database_url) as database, database.session() as session:
            [factor] = await session.scalars(select(SecondFactorModel))
        assert factor.key_id == key.id
        assert factor.confirmed_at is not None

    async def test_without_keys_a_second_factor_stops_the_import_and_other_people_need_none(
        self, database_url: str, tmp_path: Path
    ) -> None:
        environment = production(tmp_path)
        line = person("ana@example.com", totp_secret="JBSWY3DPEHPK3PXP")

        refused = await users(database_url, "import", "-", stdin=line, **environment)
        imported = await users(database_url, "import", "-", stdin=person("ben@example.com"), **environment)

        assert refused.exit_code == 1
        assert "no encryption key (*.key) in" in refused.stderr
        assert "repeat the import" in refused.stderr
        assert imported.stdout == "Imported 1, unchanged 0, refused 0.\n"

    async def test_production_takes_no_local_address(self, database_url: str, tmp_path: Path) -> None:
        lines = person("ana@example.com") + person("ben@corp.local")

        imported = await users(database_url, "import", "-", stdin=lines, **production(tmp_path))

        assert (imported.exit_code, imported.stdout) == (1, "Imported 1, unchanged 0, refused 1.\n")
        assert imported.stderr.startswith("line 2: email: has a domain of tests or local networks")

    def test_a_file_that_is_not_there_is_a_usage_error(self, tmp_path: Path) -> None:
        assert run("users", "import", str(tmp_path / "people.jsonl")).exit_code == 2

    @pytest.mark.slow
    def test_on_a_terminal_it_shows_how_far_it_is(self, migrated_sqlite_copy: str, tmp_path: Path) -> None:
        file = tmp_path / "people.jsonl"
        file.write_text(person("ana@example.com") + person("canary") + person("ben@example.com"))

        with Terminal("users", "import", str(file), DATABASE_URL=migrated_sqlite_copy) as terminal:
            exit_code = terminal.finish()

        assert exit_code == 1
        assert "[####################################]  100%" in terminal.screen
        assert "\r\x1b[Kline 2: email: has no @" in terminal.screen
        assert terminal.screen.endswith("Imported 2, unchanged 0, refused 1.\r\n")
