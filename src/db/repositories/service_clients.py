"""Other services: who they are, and whether a secret is theirs."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select, update

from src.core.exceptions import AppException, ClientNameTakenError, ClientNotFoundError
from src.core.tokens import hash_token
from src.db.base import utc_now
from src.db.models import ServiceClientModel
from src.db.repositories.base import BaseRepository


class ServiceClientRepository(BaseRepository[ServiceClientModel]):
    model = ServiceClientModel
    not_found = ClientNotFoundError
    conflicts: ClassVar[Mapping[str, type[AppException]]] = {
        "uq_service_clients_name_live": ClientNameTakenError,
        "UNIQUE constraint failed: service_clients.name": ClientNameTakenError,
    }

    async def get_live(self, name: str) -> ServiceClientModel:
        """The client of a name, locked: its secrets may be about to change. Raises `ClientNotFoundError`."""
        query = (
            select(ServiceClientModel)
            .where(ServiceClientModel.name == name, ServiceClientModel.revoked_at.is_(None))
            .with_for_update()
        )
        client = (await self._session.scalars(query)).one_or_none()
        if client is None:
            raise self.not_found
        return client

    async def is_live(self, client_id: UUID, *, lock: bool = False) -> bool:
        """Whether the client has not been revoked; with `lock`, it cannot be until the transaction ends."""
        query = select(ServiceClientModel.id).where(
            ServiceClientModel.id == client_id, ServiceClientModel.revoked_at.is_(None)
        )
        if lock:
            query = query.with_for_update(read=True)
        return await self._session.scalar(query) is not None

    async def is_secret(self, client_id: UUID, secret: str) -> bool:
        """Whether it is the secret of this live client."""
        query = select(ServiceClientModel.id).where(*_is_authenticated(client_id, secret))
        return await self._session.scalar(query.execution_options(is_plain=True)) is not None

    async def authenticate_client(self, client_id: UUID, secret: str) -> Sequence[str] | None:
        """The scopes of a live client whose secret this is, and note that it was used; `None` for any other."""
        statement = (
            update(ServiceClientModel)
            .where(*_is_authenticated(client_id, secret))
            .values(last_used_at=utc_now())
            .returning(ServiceClientModel.scopes)
        )
        return (await self._session.scalars(statement)).one_or_none()

    async def rotate(self, client: ServiceClientModel, secret: str, *, previous_expires_at: datetime) -> None:
        """Give a client its next secret. The current one goes on until then; an older one ends."""
        await self._session.execute(
            update(ServiceClientModel)
            .where(ServiceClientModel.id == client.id)
            .values(
                secret_hash=hash_token(secret),
                rotated_at=utc_now(),
                previous_secret_hash=client.secret_hash,
                previous_expires_at=previous_expires_at,
            )
        )

    async def revoke(self, client_id: UUID) -> None:
        await self._session.execute(
            update(ServiceClientModel).where(ServiceClientModel.id == client_id).values(revoked_at=utc_now())
        )


def _is_authenticated(client_id: UUID, secret: str) -> tuple[ColumnElement[bool], ...]:
    hash_ = hash_token(secret)
    is_previous = and_(
        ServiceClientModel.previous_secret_hash == hash_, ServiceClientModel.previous_expires_at > utc_now()
    )
    return (
        ServiceClientModel.id == client_id,
        ServiceClientModel.revoked_at.is_(None),
        or_(ServiceClientModel.secret_hash == hash_, is_previous),
    )
