"""What has happened: written once, read by time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, String, func, insert, literal, select

from src.db.base import smallest_id
from src.db.models import AuditEventModel, EventKind, EventOutcome, ServiceClientModel, UserModel
from src.db.repositories.base import BaseRepository, Condition

Value = TypeVar("Value")

APART = timedelta(seconds=5)  # more than an event's time and that of its id, which are taken one after the other


@dataclass(frozen=True, slots=True)
class EventFilter:
    """All that is given must hold."""

    user_id: UUID | None = None
    actor_id: UUID | None = None
    client_id: UUID | None = None
    kind: EventKind | None = None
    outcome: EventOutcome | None = None
    since: datetime | None = None
    until: datetime | None = None


class AuditEventRepository(BaseRepository[AuditEventModel]):
    model = AuditEventModel

    async def record(
        self,
        kind: EventKind,
        outcome: EventOutcome,
        *,
        user_id: UUID | None,
        actor_id: UUID | None,
        client_id: UUID | None,
        origin: str | None,
        origin_owner: UUID | None,
        is_stored: bool = True,
        **values: str | None,
    ) -> None:
        """Insert an event. Of a person or service that is not there (any more), it holds no id; nor the origin, if that
        is the place of a person who is gone. Unless `is_stored`, the same statement inserts nothing."""
        columns = {
            "user_id": _if_there(user_id, UserModel.id.expression),
            "actor_id": _if_there(actor_id, UserModel.id.expression),
            "client_id": select(ServiceClientModel.id).where(ServiceClientModel.id == client_id).scalar_subquery(),
            "origin": _if_there(origin_owner, literal(origin)) if origin_owner and origin else literal(origin, String),
            **{name: literal(value, String) for name, value in {"kind": kind, "outcome": outcome, **values}.items()},
        }
        event = select(*columns.values()).where(literal(is_stored))
        await self._session.execute(insert(AuditEventModel).from_select(list(columns), event))

    async def record_each(
        self, kind: EventKind, outcome: EventOutcome, *, changes: Mapping[UUID, str | None], origin: str
    ) -> None:
        """Insert an event for each of these users, who are there, with what changes of them."""
        rows = [
            {"kind": kind, "outcome": outcome, "user_id": user_id, "changes": text, "origin": origin}
            for user_id, text in changes.items()
        ]
        if rows:
            await self._session.execute(insert(AuditEventModel), rows)

    async def list_events(self, filters: EventFilter, *, limit: int, before: UUID | None) -> Sequence[AuditEventModel]:
        """The newest first, from behind the id `before`."""
        query = select(AuditEventModel).where(*_matches(filters)).order_by(AuditEventModel.id.desc()).limit(limit)
        if before is not None:
            query = query.where(AuditEventModel.id < before)
        return (await self._session.scalars(query)).all()

    async def may_delete(self) -> bool:
        """Whether the database lets us. On PostgreSQL, the service may run as a role that can only insert events."""
        if self._is_sqlite:
            return True
        return bool(await self._session.scalar(select(func.has_table_privilege("audit_events", "DELETE"))))

    def older_than(self, cutoff: datetime) -> Condition:
        return AuditEventModel.id < smallest_id(cutoff)


def _if_there(user_id: UUID | None, value: ColumnElement[Value]) -> ScalarSelect[Value]:
    """The value, while the user, who is locked against deletion until the event is stored, is there; else null. A
    caller may have been deleted while they were refused, and their event must not fail for it."""
    user = select(value).select_from(UserModel).where(UserModel.id == user_id)
    return user.with_for_update(read=True, key_share=True).scalar_subquery()


def _matches(filters: EventFilter) -> Sequence[ColumnElement[bool]]:
    event = AuditEventModel
    exact = {
        event.user_id: filters.user_id,
        event.actor_id: filters.actor_id,
        event.client_id: filters.client_id,
        event.kind: filters.kind,
        event.outcome: filters.outcome,
    }
    conditions = [column == value for column, value in exact.items() if value is not None]
    # By the ids as well, whose order is that of the pages: no event before or behind is read.
    if filters.since is not None:
        conditions += [event.created_at >= filters.since, event.id >= smallest_id(filters.since - APART)]
    if filters.until is not None:
        conditions += [event.created_at < filters.until, event.id < smallest_id(filters.until + APART)]
    return conditions
