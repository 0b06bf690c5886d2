"""`python -m src doctor`: checks all that the service needs, changes none of it, and says what to do.

A check never raises. What it finds is a value, with no secret in it; what it could not check is a finding as well.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from socket import gaierror
from tempfile import TemporaryFile
from typing import Literal

import aiosmtplib
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.files import how_to_close, who_else_may_open
from src.core.keys import Key, NoKeysError, find_missing, load_keys, signer, signing_keys
from src.core.settings import Settings, get_settings
from src.db.base import utc_now
from src.db.connections import CONNECT_TIMEOUT_SECONDS
from src.db.database import AsyncDatabaseManager
from src.db.migrations import find_revision, head, is_current
from src.db.models import UserModel
from src.db.repositories import OutboxRepository, SecondFactorRepository
from src.db.sqlite import sqlite_path
from src.email import EmailUtils
from src.services.outbox import STUCK_AFTER

SMTP_SECONDS = 10
CLOCK_WARNING = timedelta(seconds=5)
CLOCK_PROBLEM = timedelta(seconds=60)

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found, and what to do about it."""

    check: str
    status: Status
    text: str
    advice: str = ""
    blocks: str = ""  # why the checks that need this one cannot run


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    run: Callable[[Settings], Awaitable[Sequence[Finding]]]
    needs: Sequence[str] = ()  # the checks before it that must not have been blocked


async def examine() -> Sequence[Finding]:
    """Every check in turn."""
    settings = read_settings()
    if not isinstance(settings, Settings):
        return [*settings, *dict.fromkeys(_skip(check, "the settings do not work") for check in CHECKS[1:])]
    findings: list[Finding] = []
    for check in CHECKS:
        reasons = [finding.blocks for finding in findings if finding.check in check.needs and finding.blocks]
        findings += [_skip(check, reasons[0])] if reasons else await _run(check, settings)
    return list(dict.fromkeys(findings))


def _skip(check: Check, reason: str) -> Finding:
    return Finding(check.name, "skipped", f"Not checked: {reason}.", blocks=reason)


async def _run(check: Check, settings: Settings) -> Sequence[Finding]:
    try:
        return await check.run(settings)
    except Exception as error:  # noqa: BLE001 - nobody foresaw it; its text may hold anything, a password too
        text = f"The check failed ({type(error).__qualname__})."
        return [Finding(check.name, "problem", text, blocks=f"see {check.name}")]


# --- settings ---


def read_settings() -> Settings | Sequence[Finding]:
    """The settings, or what is wrong with them."""
    try:
        return get_settings()
    except SystemExit as refusal:
        lines = str(refusal.code).splitlines()[1:]
    except (OSError, ValueError) as error:
        lines = [f".env cannot be read ({type(error).__qualname__})"]
    return [Finding("settings", "problem", f"{line.strip()}.", "See .env.example.") for line in lines]


async def check_settings(settings: Settings) -> Sequence[Finding]:
    works = Finding("settings", "ok", f"They work, for APP_ENV={settings.app_env}.")
    return [works, *(Finding("settings", "warning", text, advice) for text, advice in _find_doubts(settings))]


def _find_doubts(settings: Settings) -> Iterator[tuple[str, str]]:
    refused = "Production refuses to start with it: unset it there."
    if settings.auth_return_token_in_response:
        yield "AUTH_RETURN_TOKEN_IN_RESPONSE hands links to whoever asks.", refused
    if settings.auth_auto_activate:
        yield "AUTH_AUTO_ACTIVATE lets people claim addresses unproven.", refused


# --- database ---


@asynccontextmanager
async def _session(settings: Settings) -> AsyncGenerator[AsyncSession, None]:
    database = AsyncDatabaseManager.from_settings(settings)
    try:
        async with database.session() as session:
            yield session
    finally:
        await database.disconnect()


async def check_database(settings: Settings) -> Sequence[Finding]:
    try:
        database = AsyncDatabaseManager.from_settings(settings)
    except ValueError as error:
        return [_no_database(f"{error}.", "Correct DATABASE_URL.")]
    if database.is_in_memory:
        return [_no_database("It is in memory, which is for tests.", "Name a file in DATABASE_URL.")]
    if database.is_sqlite and (finding := _check_file(_path(database))):
        return [finding]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await database.connect()
    except (DBAPIError, TimeoutError) as error:
        why = str(getattr(error, "orig", "")) or f"within {CONNECT_TIMEOUT_SECONDS} seconds"
        return [_no_database(f"It does not answer ({why}).", "Check DATABASE_URL, and that the database runs.")]
    finally:
        await database.disconnect()
    # Not the whole URL: a password may be in its query as well.
    kind = "SQLite" if database.is_sqlite else "PostgreSQL"
    answers = Finding("database", "ok", f"{kind} answers: {database.url.database}.")
    return [answers, *_check_modes("database", database.files)]


def _path(database: AsyncDatabaseManager) -> Path:
    return sqlite_path(database.url.database or "")


def _no_database(text: str, advice: str) -> Finding:
    return Finding("database", "problem", text, advice, blocks="the database does not answer")


def _check_file(path: Path) -> Finding | None:
    try:
        _try_to_write(path)
        if path.exists():
            return None
    except OSError as error:
        return _no_database(
            f"{path} cannot be written ({error.strerror}).",
            "The file and its folder must be writable for the user that the service runs as; be that user here too.",
        )
    advice = "The first start makes it."
    return Finding("database", "warning", f"There is no {path} yet.", advice, blocks="there is no database yet")


def _try_to_write(path: Path) -> None:
    """Raise `OSError` where a file cannot be made, or changed if it exists. Permissions alone do not tell: a disk may
    be mounted read-only. Nothing is left behind."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with TemporaryFile(dir=folder):
        pass
    if path.exists():
        path.open("r+b").close()


async def check_schema(settings: Settings) -> Sequence[Finding]:
    async with _session(settings) as session:
        revision, is_enough = await find_revision(session), await is_current(session)
    if revision == head():
        return [Finding("schema", "ok", f"The tables are those of this version ({revision}).")]
    if is_enough:
        text = f"The tables are those of a later version ({revision})."
        return [Finding("schema", "warning", text, "That is well while instances are replaced one by one.")]
    text = f"The tables are those of {revision}; this version needs {head()}." if revision else "There are no tables."
    blocks = "the tables are not those that are needed"
    if settings.database_auto_migrate or settings.database_url.startswith("sqlite"):
        return [Finding("schema", "warning", text, "The next start of the service migrates them.", blocks)]
    return [Finding("schema", "problem", text, "Run `python -m src migrate`.", blocks)]


async def check_outbox(settings: Settings) -> Sequence[Finding]:
    async with _session(settings) as session:
        stuck = await OutboxRepository(session).count_stuck(utc_now() - STUCK_AFTER)
    if stuck:
        advice = "See why with `python -m src outbox list`; dead letters are queued again with `outbox retry`."
        return [Finding("outbox", "warning", f"Emails that are dead letters or do not get out: {stuck}.", advice)]
    return [Finding("outbox", "ok", "No email is stuck.")]


# --- keys ---


async def check_keys(settings: Settings) -> Sequence[Finding]:
    try:
        keys = load_keys(settings.jwt_keys_dir)
    except (NoKeysError, OSError, ValueError) as error:
        advice = "Repair the file, or take it away and make new keys with `python -m src keys rotate`."
        return [Finding("keys", "problem", f"They cannot be read: {error}", advice, "the keys cannot be read")]
    every_key = [key for kind in keys for key in kind]
    if missing := find_missing(keys, settings.jwt_algorithm):
        return [_missing_keys(missing, settings), *_check_key_files(every_key, settings)]
    return [
        Finding("keys", "ok", _summary("Access tokens are signed", signing_keys(keys, settings.jwt_algorithm))),
        Finding("keys", "ok", _summary("Refresh tokens are signed", keys.refresh)),
        Finding("keys", "ok", _summary("Second factors are encrypted", keys.encryption)),
        Finding("keys", "ok", _sharing_summary(every_key, settings)),
        *_check_key_files(every_key, settings),
    ]


def _missing_keys(missing: str, settings: Settings) -> Finding:
    folder = settings.jwt_keys_dir
    text = f"There is {missing} in {folder}."
    if settings.is_production:
        return Finding("keys", "problem", text, "Make them with `python -m src keys rotate`.")
    try:
        _try_to_write(folder / "new.pem")
    except OSError as error:
        return Finding("keys", "problem", text, f"The folder must be writable ({error.strerror}): see JWT_KEYS_DIR.")
    return Finding("keys", "warning", text, "The first start makes some for development.")


def _summary(what: str, keys: Sequence[Key]) -> str:
    """Which key signs or encrypts, how old it is, and which will follow."""
    now, current = utc_now(), signer(keys)
    waiting = [f"; {key.id} from {key.signs_from:%Y-%m-%d %H:%M:%S} UTC on" for key in keys if key.signs_from > now]
    follow = "".join(waiting) if current.signs_from <= now else ""
    return f"{what} by {current.id}, {_age(current)}{follow}."


def _sharing_summary(keys: Sequence[Key], settings: Settings) -> str:
    ids = ", ".join(key.id for key in keys)
    return f"Replicas share them by one folder, {settings.jwt_keys_dir}: doctor must show these on each: {ids}."


def _age(key: Key) -> str:
    if not key.created_at.timestamp():
        return "whose name does not tell its age"
    days = max(0, (utc_now() - key.created_at).days)
    return f"{days} {'day' if days == 1 else 'days'} old"


def _check_key_files(keys: Sequence[Key], settings: Settings) -> Iterator[Finding]:
    for key in keys:
        if settings.is_production and key.is_generated:
            advice = "Make keys with `python -m src keys rotate` in a folder of their own, and set JWT_KEYS_DIR to it."
            yield Finding("keys", "problem", f"{key.path} was made up for development.", advice)
    yield from _check_modes("keys", [key.path for key in keys])


def _check_modes(check: str, paths: Iterable[Path]) -> Iterator[Finding]:
    for path in paths:
        if who := who_else_may_open(path):
            status: Status = "problem" if who == "Everyone" else "warning"
            yield Finding(check, status, f"{who} on this machine may open {path}.", f"{how_to_close(path)}.")


async def check_secrets(settings: Settings) -> Sequence[Finding]:
    """What is encrypted in the database, and whether its keys are here."""
    keys = {key.id: key for key in load_keys(settings.jwt_keys_dir).encryption}
    async with _session(settings) as session:
        counts = await SecondFactorRepository(session).count_by_key()
    lost = [_lost_key(key_id, count, settings) for key_id, count in counts.items() if key_id not in keys]
    current = signer([*keys.values()]).id if keys else None
    waiting = sum(count for key_id, count in counts.items() if key_id in keys and key_id != current)
    if waiting:
        advice = "Before one of these is retired, run `python -m src keys reencrypt`."
        return [*lost, Finding("secrets", "ok", f"Second factors that other keys have encrypted: {waiting}.", advice)]
    return lost or [Finding("secrets", "ok", "No second factor needs another key than the current one.")]


def _lost_key(key_id: str, count: int, settings: Settings) -> Finding:
    text = f"The encryption key {key_id} is not in {settings.jwt_keys_dir}, and second factors need it: {count}."
    return Finding("secrets", "problem", text, "Put its file back: until then their owners cannot log in with a code.")


# --- email ---


async def check_smtp(settings: Settings) -> Sequence[Finding]:
    email = EmailUtils.from_settings(settings)
    if email is None:
        status: Status = "problem" if settings.is_production else "warning"
        text = "SMTP is not configured, so activation links are in the answers, which production refuses."
        return [Finding("smtp", status, text, "Set SMTP_HOST and SMTP_FROM.")]
    server = f"{email.host}:{email.port}"
    try:
        async with asyncio.timeout(SMTP_SECONDS):
            await email.check()
    except (aiosmtplib.SMTPException, OSError) as error:
        text, advice = _explain(error)
        return [Finding("smtp", "problem", f"{server} {text}.", advice)]
    login = "after the log-in" if email.username else "without a log-in"
    return [Finding("smtp", "ok", f"{server} would take emails {login} (SMTP_TLS={email.tls}).")]


def _explain(error: BaseException) -> tuple[str, str]:
    """What failed, and what to check. The server's own words are left out: they may quote what it was sent."""
    match error:
        case aiosmtplib.SMTPAuthenticationError():
            return f"refuses the log-in ({error.code})", "Check SMTP_USERNAME and SMTP_PASSWORD."
        case aiosmtplib.SMTPSenderRefused(code=530):
            return "wants a log-in, or TLS (530)", "Set SMTP_USERNAME and SMTP_PASSWORD; check SMTP_TLS."
        case aiosmtplib.SMTPSenderRefused():
            return f"refuses the sender ({error.code})", "Check SMTP_FROM, and what the server lets the user send as."
        case aiosmtplib.SMTPResponseException():
            return f"answers with an error ({error.code})", "See the server's log."
        case gaierror():
            return "has a name that cannot be resolved", "Check SMTP_HOST, and this machine's DNS."
        case ssl.SSLError():
            why = getattr(error, "verify_message", None) or error.reason
            return f"offers no TLS that can be trusted ({why})", "Check SMTP_TLS, SMTP_PORT and the certificate."
        case TimeoutError():
            return f"did not answer within {SMTP_SECONDS} seconds", "Check SMTP_PORT, SMTP_TLS and the firewalls."
        case ConnectionRefusedError():
            return "refuses connections", "Check SMTP_HOST and SMTP_PORT, and that the server runs."
    if error.__cause__:
        return _explain(error.__cause__)
    return f"cannot be used ({error})", "Check SMTP_HOST, SMTP_PORT and SMTP_TLS."  # the words are this library's own


# --- clock ---

_CLOCK_ADVICE = "Synchronise the clocks (NTP): tokens and links end too early or too late."


async def check_clock_by_keys(settings: Settings) -> Sequence[Finding]:
    for key in (key for kind in load_keys(settings.jwt_keys_dir) for key in kind):
        if key.created_at > utc_now() + CLOCK_WARNING:
            text = f"{key.path.name} is from the future, so the clock is wrong, or was."
            return [Finding("clock", "warning", text, f"{_CLOCK_ADVICE} The key is used only when its time has come.")]
    return [Finding("clock", "ok", "No key is from the future.")]


async def check_clock_by_database(settings: Settings) -> Sequence[Finding]:
    async with _session(settings) as session:
        if (await session.connection()).dialect.name == "sqlite":  # which has this machine's clock
            return []
        asked_at = utc_now()
        told: datetime = (await session.scalars(select(func.clock_timestamp()))).one()
        apart = abs(told - asked_at - (utc_now() - asked_at) / 2)
    text = f"This machine's clock and the database's are {apart.total_seconds():.1f} seconds apart."
    if apart <= CLOCK_WARNING:
        return [Finding("clock", "ok", text)]
    return [Finding("clock", "problem" if apart > CLOCK_PROBLEM else "warning", text, _CLOCK_ADVICE)]


async def check_clock_by_users(settings: Settings) -> Sequence[Finding]:
    async with _session(settings) as session:
        newest = await session.scalar(select(UserModel.created_at).order_by(UserModel.id.desc()).limit(1))
    if newest and newest > utc_now() + CLOCK_WARNING:
        text = f"A user is from the future ({newest:%Y-%m-%d %H:%M:%S} UTC), so a clock is wrong, or was."
        return [Finding("clock", "warning", text, _CLOCK_ADVICE)]
    return [Finding("clock", "ok", "No user is from the future.")]


# --- proxy ---


async def check_proxy(_settings: Settings) -> Sequence[Finding]:
    """What uvicorn reads from the environment; what its command line says instead is not seen from here."""
    trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
    if trusted != "*":
        return [Finding("proxy", "ok", f"X-Forwarded-For is believed from {trusted}.")]
    return [
        Finding(
            "proxy",
            "warning",
            "FORWARDED_ALLOW_IPS=* takes people to be where X-Forwarded-For begins, which anyone can forge.",
            "Set it to the proxy's address or network, such as 10.0.0.0/24: see docs/behind-a-proxy.md.",
        )
    ]


CHECKS = (
    Check("settings", check_settings),
    Check("database", check_database),
    Check("schema", check_schema, needs=("database",)),
    Check("outbox", check_outbox, needs=("schema",)),
    Check("keys", check_keys),
    Check("secrets", check_secrets, needs=("schema", "keys")),
    Check("smtp", check_smtp),
    Check("clock", check_clock_by_keys, needs=("keys",)),
    Check("clock", check_clock_by_database, needs=("database",)),
    Check("clock", check_clock_by_users, needs=("schema",)),
    Check("proxy", check_proxy),
)
