"""The audit trail."""

import re
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from src.api.schemas.fields import NextCursor, Query
from src.core.users import EXAMPLE_ID, EXAMPLE_TIME
from src.db.models import EventKind, EventOutcome

_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _in_rfc_3339(text: object) -> object:
    # Pydantic would take a number, too, as the seconds since 1970.
    if not isinstance(text, str) or not _RFC_3339.fullmatch(text):
        raise ValueError(f"is not a date and time of RFC 3339, such as {EXAMPLE_TIME}")
    return text


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # the first and the last hours of the calendar
        raise ValueError("is too far away") from None


Moment = Annotated[AwareDatetime, BeforeValidator(_in_rfc_3339), AfterValidator(_in_utc)]


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
    reason: Annotated[
        str | None, Field(description="Of a failure: the code that the caller was told.", examples=[None])
    ]
    changes: Annotated[
        str | None,
        Field(description="Of an update: what was changed; of keys: their ids.", examples=[None]),
    ]
    origin: Annotated[
        str | None,
        Field(description="Where it came from, unless somebody else did it.", examples=["203.0.113.7"]),
    ]
    created_at: Annotated[datetime, Field(examples=[EXAMPLE_TIME])]


class AuditEvent(OwnEvent):
    """Who did what, or was refused it, on whom, from where."""

    user_id: Annotated[UUID | None, Field(description="On whom; null once they are deleted.", examples=[EXAMPLE_ID])]
    actor_id: Annotated[
        UUID | None,
        Field(description="Who; null if they had not proved it, or are deleted.", examples=[EXAMPLE_ID]),
    ]
    client_id: Annotated[
        UUID | None, Field(description="The service that did it, or that it was done to.", examples=[None])
    ]
    address_hash: Annotated[
        str | None,
        Field(description="Of a typed address that nobody has: the same hash is the same address.", examples=[None]),
    ]


class OwnEventPage(BaseModel):
    items: list[OwnEvent]
    next_cursor: NextCursor


class AuditEventPage(BaseModel):
    items: list[AuditEvent]
    next_cursor: NextCursor
