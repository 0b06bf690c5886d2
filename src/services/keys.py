"""What is done with the keys that sign tokens. They are files, and come and go without a database: this records it."""

from typing import Literal

from src.core.callers import Operator
from src.db.models import EventKind
from src.services.context import Service


class KeyService(Service):
    async def record(self, kind: Literal[EventKind.KEY_ROTATION, EventKind.KEY_RETIREMENT], *key_ids: str) -> None:
        """Record what the operator has done with these keys. Their ids show nothing of them."""
        event = self.context.audit.new_event(kind, by=Operator())
        event.changes = " ".join(key_ids)
        await self.uow.begin()
        await self.context.commit(event)
