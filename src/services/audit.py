"""The audit trail: every act that matters to security leaves an event, whether it succeeds or is refused.

An event is written in the transaction of the act. Of an act that is refused nothing else lasts.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.callers import Caller, Operator, Principal, ServiceClient
from src.core.exceptions import AppException
from src.db.database import begin_writing
from src.db.models import EventKind, EventOutcome
from src.db.repositories import AuditEventRepository

COMMAND_LINE = "command line"


@dataclass(slots=True)
class Act:
    """What somebody tries to do. A flow fills in what it learns meanwhile."""

    kind: EventKind
    origin: str | None  # where they are
    user_id: UUID | None = None  # on whom
    actor_id: UUID | None = None  # who, once they have proved it
    client_id: UUID | None = None  # which service does it, or has it done to it
    address: str | None = None  # typed, and nobody's; only a keyed hash of it is stored
    changes: str | None = None

    @property
    def origin_owner(self) -> UUID | None:
        """The user with whom the origin is forgotten: who acts, or else on whom. Of a service or the command line, it
        is nobody's."""
        is_nobodys = self.client_id is not None or self.origin == COMMAND_LINE
        return None if is_nobodys else self.actor_id or self.user_id

    def set_actor(self, user_id: UUID) -> None:
        """Whoever acts has proved to be this user, and acts on themselves."""
        self.user_id = self.actor_id = user_id


class Audit:
    """Writes events. `origin` is where the caller is; `fingerprint` makes the keyed hash of an address."""

    def __init__(self, session: AsyncSession, *, origin: str | None, fingerprint: Callable[[str], str]) -> None:
        self._session = session
        self._events = AuditEventRepository(session)
        self._origin = origin
        self._fingerprint = fingerprint

    @asynccontextmanager
    async def act(
        self, kind: EventKind, *, by: Caller | None = None, user_id: UUID | None = None
    ) -> AsyncGenerator[Act, None]:
        """Watch over an act. If it is refused, what it did is discarded, the refusal is recorded and committed, and
        then it goes on to the caller. That the service is busy is no refusal.

        The flow itself records its success, before it commits.
        """
        act = self.describe(kind, by=by, user_id=user_id)
        try:
            yield act
        except AppException as refusal:
            if refusal.status_code < 500:
                await self._record_refusal(act, refusal.code)
            raise

    def describe(self, kind: EventKind, *, by: Caller | None = None, user_id: UUID | None = None) -> Act:
        """An act, for flows that record its refusal themselves because they have more to keep of it."""
        act = Act(kind, self._origin, user_id)
        match by:
            case Principal():
                act.actor_id = by.user_id
            case ServiceClient():
                act.client_id = by.client_id
            case Operator():
                act.origin = COMMAND_LINE
        return act

    async def succeeded(self, act: Act) -> None:
        """Add the event of a success to the flow's transaction."""
        await self._record(act, EventOutcome.SUCCESS)

    async def failed(self, act: Act, reason: str) -> None:
        """Add the event of a failure to the flow's transaction."""
        await self._record(act, EventOutcome.FAILURE, reason)

    async def _record_refusal(self, act: Act, reason: str) -> None:
        await begin_writing(self._session)  # ends the flow's transaction, and with it all that it wrote
        await self.failed(act, reason)
        await self._session.commit()

    async def _record(self, act: Act, outcome: EventOutcome, reason: str | None = None) -> None:
        await self._events.record(
            act.kind,
            outcome,
            reason=reason,
            user_id=act.user_id,
            actor_id=act.actor_id,
            client_id=act.client_id,
            address_hash=self._fingerprint(act.address) if act.address else None,
            changes=act.changes,
            origin=act.origin,
            origin_owner=act.origin_owner,
        )
