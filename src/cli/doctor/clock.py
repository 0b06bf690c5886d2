"""Clocks, by what they have written down."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select

from src.cli.doctor.findings import Finding, open_session
from src.core.keys import load_keys
from src.core.settings import Settings
from src.db.base import utc_now
from src.db.models import UserModel

CLOCK_WARNING = timedelta(seconds=5)
CLOCK_PROBLEM = timedelta(seconds=60)

_CLOCK_ADVICE = "Synchronise the clocks (NTP): tokens and links end too early or too late."


async def check_clock_by_keys(settings: Settings) -> Sequence[Finding]:
    for key in (key for kind in load_keys(settings.jwt_keys_dir) for key in kind):
        if key.created_at > utc_now() + CLOCK_WARNING:
            text = f"{key.path.name} is from the future, so the clock is wrong, or was."
            return [Finding("clock", "warning", text, f"{_CLOCK_ADVICE} The key is used only when its time has come.")]
    return [Finding("clock", "ok", "No key is from the future.")]


async def check_clock_by_database(settings: Settings) -> Sequence[Finding]:
    async with open_session(settings) as session:
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
    async with open_session(settings) as session:
        newest = await session.scalar(select(UserModel.created_at).order_by(UserModel.id.desc()).limit(1))
    if newest and newest > utc_now() + CLOCK_WARNING:
        text = f"A user is from the future ({newest:%Y-%m-%d %H:%M:%S} UTC), so a clock is wrong, or was."
        return [Finding("clock", "warning", text, _CLOCK_ADVICE)]
    return [Finding("clock", "ok", "No user is from the future.")]
