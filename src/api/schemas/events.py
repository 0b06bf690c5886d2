"""The audit trail."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from src.api.schemas.fields import NextCursor, Query
from src.core.users import EXAMPLE_ID
from src.db.models import EventKind, EventOutcome


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # the first and the last hours of the calendar
        raise ValueError("is too far away") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class EventQuery(Query):
    """Which events. All filters that are given must hold."""

    kind: EventKind | None = None
    outcome: EventOutcome | None = None
    since: Annotated[Moment | None, Field(description="At this moment or later.")] = None
    until: Annotated[Moment | None, Field(description="Before this moment.")] = None


class AuditEventQuery(EventQuery):
    user_id: Annotated[UUID | None, Field(description="On whom.")] = None
    actor_id: Annotated[UUID | None, Field(description="Who did it.")] = None
    client_id: Annotated[UUID | None, Field(description="The service that did it, or that it was done to.")] = None


class OwnEvent(BaseModel):
    """What happened to one's account."""

    model_config = ConfigDict(from_attributes=True)

    id: Annotated[UUID, Field(examples=[EXAMPLE_ID])]
    kind: Annotated[str, Field(examples=["log_in"])]
    outcome: Annotated[str, Field(description="`success` or `failure`.", examples=["success"])]
    reason: Annotated[str | None, Field(description="Of a failure: the code that the caller was told.")]
    changes: Annotated[
        str | None,
        Field(description="Of an update: what was changed; of keys: their ids.", examples=["is_active=false"]),
    ]
    origin: Annotated[
        str | None,
        Field(description="Where it came from, unless somebody else did it.", examples=["203.0.113.7"]),
    ]
    created_at: datetime


class AuditEvent(OwnEvent):
    """Who did what, or was refused it, on whom, from where."""

    user_id: Annotated[UUID | None, Field(description="On whom; null once they are deleted.")]
    actor_id: Annotated[UUID | None, Field(description="Who; null if they had not proved it, or are deleted.")]
    client_id: Annotated[UUID | None, Field(description="The service that did it, or that it was done to.")]
    address_hash: Annotated[
        str | None, Field(description="Of a typed address that nobody has: the same hash is the same address.")
    ]


class OwnEventPage(BaseModel):
    items: list[OwnEvent]
    next_cursor: NextCursor


class AuditEventPage(BaseModel):
    items: list[AuditEvent]
    next_cursor: NextCursor
