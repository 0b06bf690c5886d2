"""Taking people over from another system, with the hashes of their passwords and the secrets of their second factors.

It has the database itself, as no request asks for it: a file of any size is read once, in batches that are transactions
of their own. No reason for a refusal repeats a piece of the file.
"""

import hashlib
import sqlite3
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from src.core.addresses import LOCAL_ADDRESS, is_local
from src.core.encryption import Encryption
from src.core.fields import Email, Name, reason_of
from src.core.passwords import parse_hash
from src.core.second_factor import normalize_totp_secret
from src.db.database import AsyncDatabaseManager
from src.db.models import EventKind, EventOutcome
from src.db.unit_of_work import UnitOfWork, open_unit_of_work
from src.services.audit import COMMAND_LINE

BATCH = 1000
MAX_LINE_BYTES = 16 * 1024
HIGHEST_COST = 20  # as AUTH_BCRYPT_ROUNDS: one log-in at 31 would keep a thread for days

Report = Callable[[int, str], None]


def _verifiable(hashed_password: str) -> str:
    parsed = parse_hash(hashed_password)
    if parsed is None:
        raise ValueError("is not a hash that can be verified: bcrypt ($2a$, $2b$, $2y$), or bcrypt-sha256 version 2")
    if parsed.rounds > HIGHEST_COST:
        raise ValueError(f"has a cost above {HIGHEST_COST}: each log-in would take minutes")
    return hashed_password


class Person(BaseModel):
    """A line of the file. A misspelt field is an error rather than silently lost."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    email: Email
    hashed_password: Annotated[str, Field(max_length=255), AfterValidator(_verifiable)]
    name: Name | None = None
    is_active: bool = True
    is_admin: bool = False
    totp_secret: Annotated[str, Field(max_length=128), AfterValidator(normalize_totp_secret)] | None = None

    @field_validator("name", "totp_secret", mode="before")
    @classmethod
    def _none_if_empty(cls, text: object) -> object:
        """Exports write an empty one where there is none."""
        return None if isinstance(text, str) and not text.strip() else text

    @field_validator("email")
    @classmethod
    def _reachable(cls, email: str, info: ValidationInfo) -> str:
        if info.context and info.context["is_production"] and is_local(email):
            raise ValueError(LOCAL_ADDRESS)
        return email

    def rights(self) -> str | None:
        """What the event says of the account."""
        described = {
            "is_admin=true": self.is_admin,
            "is_active=false": not self.is_active,
            "second_factor": self.totp_secret is not None,
        }
        return " ".join(text for text, holds in described.items() if holds) or None


class ReadsLines(Protocol):
    """A file that is open for reading bytes."""

    def readline(self, size: int, /) -> bytes: ...


@dataclass(slots=True)
class ImportCounts:
    """How many people the lines have made, how many had an account already, and how many lines were refused."""

    imported: int = 0
    unchanged: int = 0
    refused: int = 0


async def import_people(
    database: AsyncDatabaseManager,
    file: ReadsLines,
    *,
    encryption: Encryption,
    report: Report,
    is_production: bool,
    dry_run: bool = False,
) -> ImportCounts:
    """Make an active account of each line, as if its address had been confirmed: sign-ups that wait for it end.

    The codes of a person's authenticator app go on working. Only their secret needs a key: where it cannot be
    encrypted, `NoKeysError` or `OSError` is raised, and the batch is not stored.

    An address that has an account is left as it is, so repeating an import changes nothing, and ends one that was
    interrupted. `report` gets the number of each line that is refused, and why. A `dry_run` only reads.
    """
    counts = ImportCounts()
    people = _read_people(file, counts, report, is_production=is_production)
    async with open_unit_of_work(database) as uow:
        with closing(_SeenAddresses()) as seen:
            while batch := list(islice(people, BATCH)):
                imported = await (_count_new(uow, batch, seen) if dry_run else _store(uow, batch, encryption))
                counts.imported += imported
                counts.unchanged += len(batch) - imported
    return counts


async def _store(uow: UnitOfWork, batch: Sequence[Person], encryption: Encryption) -> int:
    """How many are new; the first line of an address counts."""
    people = dict[str, Person]()
    for person in batch:
        people.setdefault(person.email, person)
    await uow.begin()
    await uow.users.lock_addresses(*people)
    for email in await uow.users.find_owned(people):
        del people[email]
    await uow.users.delete_pending(*people)
    accounts = [person.model_dump(exclude={"totp_secret"}) for person in people.values()]
    added = await uow.users.add_unless_owned(accounts)
    secrets = {user_id: people[email].totp_secret for email, user_id in added.items()}
    await uow.second_factors.add_confirmed(
        {user_id: encryption.encrypt(secret, user_id=user_id) for user_id, secret in secrets.items() if secret}
    )
    rights = {user_id: people[email].rights() for email, user_id in added.items()}
    await uow.events.record_each(EventKind.USER_IMPORT, EventOutcome.SUCCESS, changes=rights, origin=COMMAND_LINE)
    await uow.commit()
    return len(added)


async def _count_new(uow: UnitOfWork, batch: Sequence[Person], seen: "_SeenAddresses") -> int:
    """What `_store` would answer."""
    new = [person.email for person in batch if seen.add(person.email)]
    return len(new) - len(await uow.users.find_owned(new))


class _SeenAddresses:
    """The addresses that came before, which are stored nowhere in a dry run. SQLite keeps what does not fit into a
    little memory in a file of its own, which goes with the connection."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("")
        self._connection.execute("CREATE TABLE seen (address_hash BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, email: str) -> bool:
        """Whether it is new."""
        hash_ = hashlib.sha256(email.encode()).digest()
        return self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", (hash_,)).rowcount == 1

    def close(self) -> None:
        self._connection.close()


def _read_people(file: ReadsLines, counts: ImportCounts, report: Report, *, is_production: bool) -> Iterator[Person]:
    for number, line in enumerate(_read_lines(file), start=1):
        if number == 1:
            line = line.removeprefix(BOM_UTF8)
        if not line.strip():
            continue
        try:
            yield _read_person(line, is_production=is_production)
        except ValueError as error:
            counts.refused += 1
            report(number, _reason(error))


def _read_lines(file: ReadsLines) -> Iterator[bytes]:
    """Each line, cut where it is longer than any that is good: a file may be one endless line."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def _read_person(line: bytes, *, is_production: bool) -> Person:
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        raise ValueError(f"is longer than {MAX_LINE_BYTES:,} bytes")
    return Person.model_validate_json(line, context={"is_production": is_production})


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    reasons = []
    for each in error.errors(include_url=False, include_input=False):
        if each["type"] == "extra_forbidden":  # even its name may be a password, misplaced
            reasons.append("has a field that is not known")
        else:
            reasons.append(": ".join([*map(str, each["loc"][:1]), reason_of(each)]))
    return "; ".join(dict.fromkeys(reasons))
