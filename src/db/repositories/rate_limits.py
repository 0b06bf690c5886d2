"""How often a key was used: the generic cell rate algorithm (GCRA, ITU-T I.371), in one statement.

A row holds the theoretical arrival time (TAT), at which all places of the key are free again. Taking a place moves it
on by an interval, and is refused where it would lie further ahead than the period. So one number counts, a key has one
row however often it is used, and a row whose time has passed says no more than none.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Double, Executable, Table, bindparam, case, delete, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.limits import Place
from src.db.models import rate_limits

# Seconds, since times are floating-point numbers: ten intervals may come to more than the period.
_ROUNDING: ColumnElement[float] = literal_column("0.001", Double())
# The database's clock, as Unix time: replicas have clocks that differ.
_NOW: Mapping[str, ColumnElement[float]] = {
    "sqlite": literal_column("((julianday('now') - 2440587.5) * 86400.0)", Double()),
    "postgresql": literal_column("CAST(EXTRACT(EPOCH FROM statement_timestamp()) AS double precision)", Double()),
}

_INSERTS: Mapping[str, Callable[[Table], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
_STANDS_ALONE = {"is_plain": True, "stands_alone": True}


class RateLimitRepository:
    """What it changes outside a transaction is one of its own, so that a refusal later takes nothing back."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    @property
    def _dialect(self) -> str:
        return self._session.get_bind().dialect.name

    async def take(self, places: Sequence[Place]) -> Collection[UUID]:
        """Take these places, each on its own; the keys of those that were free. It is exact, whoever else takes some at
        the same moment in whatever process: the database decides, by its own clock."""
        return (await self._session.scalars(_take(self._dialect), _rows(places))).all()

    async def give_back(self, places: Sequence[Place]) -> None:
        """Free places that were taken."""
        await self._session.execute(_give_back(self._dialect), _rows(places))

    async def forget(self, key: UUID) -> None:
        """Free all places of a key."""
        await self._session.execute(delete(rate_limits).where(rate_limits.c.id == key))

    async def mark(self, key: UUID, lifetime: timedelta) -> None:
        """Remember a key for so long, as one whose places are all taken; `is_marked` tells whether it is."""
        seconds = lifetime.total_seconds()
        await self._session.execute(
            _mark(self._dialect), [{"id": key, "interval": seconds, "period": seconds, "first": seconds}]
        )

    async def is_marked(self, key: UUID) -> bool:
        query = select(rate_limits.c.id).where(rate_limits.c.id == key, rate_limits.c.tat > _NOW[self._dialect])
        return await self._session.scalar(query.execution_options(is_plain=True)) is not None

    async def find_waits(self, places: Sequence[Place]) -> Mapping[UUID, float]:
        """In how many seconds each key has a place again."""
        now = _NOW[self._dialect]
        next_place = rate_limits.c.tat + rate_limits.c.interval - rate_limits.c.period
        keys = [place.key for place in places]
        query = select(rate_limits.c.id, next_place - now).where(rate_limits.c.id.in_(keys))
        return dict((await self._session.execute(query.execution_options(is_plain=True))).all())

    async def report(self, key: UUID) -> bool:
        """Whether nobody was told in the last period that the key has no place left. Of all who ask, one hears true."""
        now, row = _NOW[self._dialect], rate_limits.c
        statement = (
            update(rate_limits)
            .where(row.id == key, row.reported_until <= now)
            .values(reported_until=now + row.period)
            .returning(row.id)
            .execution_options(**_STANDS_ALONE)
        )
        return await self._session.scalar(statement) is not None

    async def delete_unused(self, *, limit: int) -> int:
        """Forget at most so many keys whose places are all free; how many they were."""
        now, row = _NOW[self._dialect], rate_limits.c
        unused = select(row.id).where(row.tat <= now, row.reported_until <= now).limit(limit)
        unused = unused.with_for_update(skip_locked=True)
        deleted = await self._session.scalars(delete(rate_limits).where(row.id.in_(unused)).returning(row.id))
        return len(deleted.all())


def _rows(places: Sequence[Place]) -> list[dict[str, Any]]:
    """In the order of their keys: two who take the same places at once could otherwise end in a deadlock."""
    return [
        {"id": place.key, "interval": place.rate.interval, "period": place.rate.period, "first": place.rate.interval}
        for place in sorted(places, key=attrgetter("key"))
    ]


@lru_cache
def _take(dialect: str) -> Executable:
    now, insert = _NOW[dialect], _INSERTS[dialect](rate_limits)
    begins_at = case((rate_limits.c.tat > now, rate_limits.c.tat), else_=now)
    tat = begins_at + insert.excluded.interval
    return (
        insert.values(tat=now + bindparam("first", type_=Double()))
        .on_conflict_do_update(
            index_elements=["id"],
            set_={"tat": tat, "interval": insert.excluded.interval, "period": insert.excluded.period},
            where=tat - now <= insert.excluded.period + _ROUNDING,
        )
        .returning(rate_limits.c.id)
        .execution_options(**_STANDS_ALONE)
    )


@lru_cache
def _give_back(dialect: str) -> Executable:
    insert = _INSERTS[dialect](rate_limits)
    return (
        insert.values(tat=_NOW[dialect])
        .on_conflict_do_update(index_elements=["id"], set_={"tat": rate_limits.c.tat - insert.excluded.interval})
        .returning(rate_limits.c.id)  # one statement for all, rather than one for each
        .execution_options(**_STANDS_ALONE)
    )


@lru_cache
def _mark(dialect: str) -> Executable:
    insert = _INSERTS[dialect](rate_limits)
    return insert.values(tat=_NOW[dialect] + bindparam("first", type_=Double())).on_conflict_do_update(
        index_elements=["id"], set_={"tat": insert.excluded.tat}
    )
