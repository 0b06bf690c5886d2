"""Other services: how they are introduced, and how they get their access tokens."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn
from uuid import UUID

from src.core.callers import AuthenticatedClient, Operator, Scope
from src.core.exceptions import (
    ClientRotatingError,
    InvalidClientError,
    InvalidScopeError,
    TooManyRequestsException,
)
from src.core.tokens import hash_token, new_token
from src.db.base import utc_now
from src.db.models import EventKind, ServiceClientModel
from src.services.audit import AuditEvent
from src.services.context import Service


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """What a service is given to prove who it is. The secret is not stored: nobody can read it again."""

    client_id: UUID
    client_secret: str


@dataclass(frozen=True, slots=True)
class ServiceToken:
    access_token: str
    expires_in: timedelta
    scopes: Sequence[str]


class ClientService(Service):
    """Clients are kept from the command line: who can do that holds the database anyway."""

    async def create(self, *, name: str, scopes: Iterable[Scope]) -> ClientSecret:
        """Introduce a service. Raises `ClientNameTakenError`."""
        async with self.context.recording(EventKind.CLIENT_CREATION, by=Operator()) as event:
            secret = new_token()
            await self.uow.begin()
            client = ServiceClientModel(name=name, scopes=sorted(set(scopes)), secret_hash=hash_token(secret))
            await self.uow.clients.add(client)
            event.client_id = client.id
            await self.context.commit(event)
            return ClientSecret(client.id, secret)

    async def rotate(self, name: str, *, overlap: timedelta) -> ClientSecret:
        """Give a service its next secret. The one before works as long as the overlap; without one, all end at once.

        Raises `ClientNotFoundError`, and `ClientRotatingError` while an older secret works: repeating a rotation whose
        output was lost would otherwise end the secret that is in use.
        """
        async with self.context.recording(EventKind.CLIENT_ROTATION, by=Operator()) as event:
            secret = new_token()
            await self.uow.begin()
            client = await self.uow.clients.get_live(name)
            event.client_id = client.id
            if overlap and client.previous_expires_at and client.previous_expires_at > utc_now():
                raise ClientRotatingError
            await self.uow.clients.rotate(client, secret, previous_expires_at=utc_now() + overlap)
            await self.context.commit(event)
            return ClientSecret(client.id, secret)

    async def revoke(self, name: str) -> None:
        """End a service's access: its secrets and its tokens, at once. Raises `ClientNotFoundError`."""
        async with self.context.recording(EventKind.CLIENT_REVOCATION, by=Operator()) as event:
            await self.uow.begin()
            client = await self.uow.clients.get_live(name)
            event.client_id = client.id
            await self.uow.clients.revoke(client.id)
            await self.context.commit(event)

    async def issue_token(
        self, *, client_id: str, client_secret: str, scopes: Collection[str] | None, resources: Sequence[str] = ()
    ) -> ServiceToken:
        """An access token for a service (RFC 6749, section 4.4), for all its scopes or those that it asks for.

        Raises `InvalidClientError`, `TooManyRequestsException` after too many wrong secrets, `InvalidScopeError` for a
        scope that it does not have, and `InvalidTargetError`.
        """
        signer = self.context.signer
        async with self.context.recording(EventKind.CLIENT_TOKEN) as event:
            audience = signer.choose_audience(resources)
            client = await self._authenticate(event, client_id, client_secret)
            if not client.scopes.issuperset(scopes or ()):
                raise InvalidScopeError
            await self.context.commit(event)
        asked = sorted(client.scopes.intersection(scopes or client.scopes))
        token = signer.sign_service_access(client.client_id, asked, audience=audience)
        return ServiceToken(token, signer.access_lifetime, asked)

    async def authenticate(self, *, client_id: str, client_secret: str) -> AuthenticatedClient:
        """The service whose credentials these are, with all its scopes. Success leaves no event: services prove who
        they are each time that they ask about a token.

        Raises `InvalidClientError`, and `TooManyRequestsException` after too many wrong secrets.
        """
        async with self.context.recording(EventKind.CLIENT_TOKEN) as event:
            client = await self._authenticate(event, client_id, client_secret)
            await self.context.commit()
            return client

    async def _authenticate(self, event: AuditEvent, client_id: str, client_secret: str) -> AuthenticatedClient:
        """Begins the transaction. Only a wrong secret takes a place: of right ones, many come at once, and nobody may
        keep a service out by guessing."""
        id_ = _read_id(client_id)
        if not await self.uow.clients.is_secret(id_, client_secret):
            await self._refuse_guess(event, id_)
        event.client_id = id_
        await self.uow.begin()
        granted = await self.uow.clients.authenticate_client(id_, client_secret)
        if granted is None:  # it was revoked, or its secret rotated, meanwhile
            raise InvalidClientError
        return AuthenticatedClient(id_, frozenset(granted))

    async def _refuse_guess(self, event: AuditEvent, id_: UUID) -> NoReturn:
        try:
            await self.context.limits.take_client_guess(str(id_))
        except TooManyRequestsException as refusal:
            if refusal.is_first:  # only that one leaves an event
                event.client_id = await self._find_client_id(id_)
            raise
        event.client_id = await self._find_client_id(id_)
        raise InvalidClientError

    async def _find_client_id(self, id_: UUID) -> UUID | None:
        """For the event of a refusal: it names nobody where there is no such client."""
        return id_ if await self.uow.clients.exists({"id": id_}) else None


def _read_id(client_id: str) -> UUID:
    try:
        return UUID(client_id)
    except ValueError:
        raise InvalidClientError from None
