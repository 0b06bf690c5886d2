"""`/api/audit-events` and `/auth/events`: what has happened, to anyone and to oneself."""

from typing import Annotated

from fastapi import APIRouter, Query

from src.api.dependencies import AuditReader, CurrentUser, UnitOfWorkDep
from src.api.errors import TOKEN_ERRORS, document
from src.api.schemas.events import AuditEvent, AuditEventPage, AuditEventQuery, EventQuery, OwnEvent, OwnEventPage
from src.api.schemas.fields import write_cursor
from src.core.exceptions import InsufficientScopeError, ValidationException
from src.db.models import AuditEventModel
from src.db.repositories import EventFilter

router = APIRouter(tags=["Audit"])


@router.get(
    "/api/audit-events",
    responses=document(*TOKEN_ERRORS, InsufficientScopeError, ValidationException),
)
async def list_audit_events(
    query: Annotated[AuditEventQuery, Query()], uow: UnitOfWorkDep, _caller: AuditReader
) -> AuditEventPage:
    """Everything that matters to security, done or refused, the newest first. For administrators, and services with
    `audit:read`."""
    filters = EventFilter(**query.model_dump(exclude={"limit", "cursor"}))
    events = await uow.events.list_events(filters, limit=query.limit + 1, before=query.cursor)
    items = [AuditEvent.model_validate(event) for event in events[: query.limit]]
    return AuditEventPage(items=items, next_cursor=write_cursor(items[-1].id) if len(events) > query.limit else None)


@router.get("/auth/events", responses=document(*TOKEN_ERRORS, ValidationException))
async def list_own_events(
    query: Annotated[EventQuery, Query()], uow: UnitOfWorkDep, caller: CurrentUser
) -> OwnEventPage:
    """What happened to one's own account, the newest first: log-ins and attempts, and who changed what."""
    filters = EventFilter(user_id=caller.user_id, **query.model_dump(exclude={"limit", "cursor"}))
    events = await uow.events.list_events(filters, limit=query.limit + 1, before=query.cursor)
    items = [_as_seen_by_its_owner(event) for event in events[: query.limit]]
    return OwnEventPage(items=items, next_cursor=write_cursor(items[-1].id) if len(events) > query.limit else None)


def _as_seen_by_its_owner(event: AuditEventModel) -> OwnEvent:
    """Where an administrator or a service acted from is theirs."""
    seen = OwnEvent.model_validate(event)
    is_somebody_else = event.actor_id not in (None, event.user_id) or event.client_id is not None
    return seen.model_copy(update={"origin": None}) if is_somebody_else else seen
