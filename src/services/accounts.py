"""How an account begins: somebody signs up or is invited, and proves that the address is theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from src.core.callers import Operator
from src.core.exceptions import (
    InvalidTokenError,
    SignUpClosedError,
    UserEmailTakenError,
    UserNotFoundError,
    WrongPasswordError,
)
from src.core.hash_pool import HashKind
from src.core.kinds import EmailKind, TokenPurpose
from src.db.models import EventKind, UserModel
from src.services.audit import AuditEvent
from src.services.context import Service
from src.services.outbox import issue_link

RESENT_LINKS = 3  # of the newest sign-ups


@dataclass(frozen=True, slots=True)
class SignUp:
    user_id: UUID
    activation_required: bool
    activation_url: str | None  # None when it is mailed


@dataclass(frozen=True, slots=True)
class PendingSignUp:
    """What the person who followed a link is about to confirm."""

    user_id: UUID
    email: str
    name: str | None
    signed_up_at: datetime
    signed_up_from: str | None
    asks_password: bool  # several sign-ups wait for this address: which one is meant?


class AccountService(Service):
    async def sign_up(self, *, email: str, password: str, name: str | None) -> SignUp:
        """Begin an account. When the link travels by email, nothing in the answer tells whether the address is known.

        Raises `SignUpClosedError` where people come by invitation alone, `ValidationException` for a weak password,
        `ServiceUnavailableException` when too many wait to be hashed and, where the answer would hold the link anyway,
        `UserEmailTakenError`.
        """
        if self.settings.auth_sign_up == "invitation":
            raise SignUpClosedError  # before the recording: it is the same for all, and names nobody
        async with self.context.recording(EventKind.SIGN_UP) as event:
            await self._check_password(password, email=email)
            hashed_password = await self.context.passwords.hash(password, kind=HashKind.SIGN_UP)
            user = UserModel(email=email, hashed_password=hashed_password, name=name)
            await self.uow.begin()
            if self.settings.auth_auto_activate:
                await self._add_activated(user, event)
                await self.context.commit(event)
                return SignUp(user.id, activation_required=False, activation_url=None)
            url = await self._add_pending(user, event)
            await self.context.commit(event)
            return SignUp(user.id, activation_required=True, activation_url=url)

    async def activate(self, token: str) -> UUID:
        """Make the sign-up that came with this link the owner of its address; the others of the address end.

        Raises `InvalidTokenError`, also when another sign-up or account owns the address by now.
        """
        async with self.context.recording(EventKind.ACTIVATION) as event:
            await self.uow.begin()
            user_id = await self._activate(token, TokenPurpose.ACTIVATION, event)
            await self.context.commit(event)
            return user_id

    async def preview_activation(self, token: str) -> PendingSignUp:
        """What the link would confirm. It changes nothing, since mail scanners follow links.

        Raises `InvalidTokenError`.
        """
        return (await self._find_pending(token))[0]

    async def confirm_activation(self, token: str, password: str | None) -> UUID | PendingSignUp:
        """`activate` for the page, where a person may click by habit: while several sign-ups of the address wait, it
        takes the password chosen at sign-up, and gives the sign-up back if that is missing or wrong.

        Raises `InvalidTokenError`.
        """
        async with self.context.recording(EventKind.ACTIVATION) as event:
            pending, hashed_password = await self._find_pending(token)
            if pending.asks_password and not password:
                return pending
            event.user_id = pending.user_id
            is_theirs = not pending.asks_password or await self.context.passwords.verify(
                password or "", hashed_password, kind=HashKind.ACCOUNT_CHANGE
            )
            await self.uow.begin()
            if not is_theirs:
                await self.context.commit(event, failure=WrongPasswordError.code)
                return pending
            user_id = await self._activate(token, TokenPurpose.ACTIVATION, event)
            await self.context.commit(event)
            return user_id

    async def preview_invitation(self, token: str) -> str:
        """The address that was invited; changes nothing. Raises `InvalidTokenError`."""
        return (await self._get_token_user(token, TokenPurpose.INVITATION)).email

    async def accept_invitation(self, *, token: str, password: str) -> UUID:
        """Make the invited row the owner of its address, with the password that its owner chooses.

        Raises `InvalidTokenError`, and `ValidationException` for a weak password, which does not consume the link.
        """
        async with self.context.recording(EventKind.INVITATION_ACCEPTANCE) as event:
            user = await self._get_token_user(token, TokenPurpose.INVITATION)
            event.set_actor(user.id)
            await self._check_password(password, email=user.email)
            hashed_password = await self.context.passwords.hash(password, kind=HashKind.ACCOUNT_CHANGE)
            await self.uow.begin()
            await self._activate(token, TokenPurpose.INVITATION, event, hashed_password=hashed_password)
            await self.context.commit(event)
            return user.id

    async def create_admin(self, *, email: str, password: str) -> UUID:
        """An active administrator, from the command line. Sign-ups that wait for the address end.

        Raises `UserEmailTakenError`, and `ValidationException` for a weak password.
        """
        async with self.context.recording(EventKind.USER_CREATION, by=Operator()) as event:
            event.changes = "is_admin=true"
            await self._check_password(password, email=email)
            hashed_password = await self.context.passwords.hash(password, kind=HashKind.ACCOUNT_CHANGE)
            user = UserModel(email=email, hashed_password=hashed_password, is_admin=True)
            await self.uow.begin()
            await self._add_activated(user, event)
            await self.context.commit(event)
            return user.id

    async def resend_activation(self, email: str) -> None:
        """Email each of the newest live sign-ups of the address its own new link, or tell its owner that there is an
        account. Does nothing where SMTP is not configured."""
        if not self.context.outbox.is_wired:
            return
        event = self.context.audit.new_event(EventKind.ACTIVATION_RESEND)
        await self.uow.begin()
        await self.uow.users.lock_addresses(email)
        owner = await self.uow.users.find_owner(email)
        if owner:
            recipients: Sequence[UserModel] = [owner]
            await self.context.notify(EmailKind.ALREADY_REGISTERED, to=owner.email, user_id=owner.id)
        else:
            recipients = await self.uow.users.list_live_sign_ups(email, limit=RESENT_LINKS, lock=True)
            for user in recipients:
                await self._queue_activation(user)
        event.user_id = recipients[0].id if recipients else None
        await self.context.commit(event, failure=None if recipients else UserNotFoundError.code)

    async def _add_activated(self, user: UserModel, event: AuditEvent) -> None:
        await self.uow.users.lock_addresses(user.email)
        if owner := await self.uow.users.find_owner(user.email):
            event.user_id = owner.id
            raise UserEmailTakenError
        await self.uow.users.delete_pending(user.email)
        await self.uow.users.add(user)
        event.user_id = user.id

    async def _add_pending(self, user: UserModel, event: AuditEvent) -> str | None:
        """Add the sign-up, and its link: returned, or queued as an email. For an address that has an owner, a notice to
        them is queued instead: the same work, and the same time."""
        await self.uow.users.lock_addresses(user.email)  # an owner who leaves at this moment takes their emails along
        owner = await self.uow.users.find_owner(user.email)
        if owner and self.context.link_in_response:
            event.user_id = owner.id
            raise UserEmailTakenError
        user.is_active, user.activated_at, user.signed_up_from = False, None, self.context.origin.address
        await self.uow.users.add(user)
        event.user_id = user.id
        if self.context.link_in_response:
            return await issue_link(self.uow, self.settings, EmailKind.ACTIVATION, user.id)
        if owner:
            await self.context.notify(EmailKind.ALREADY_REGISTERED, to=owner.email, user_id=owner.id)
        else:
            await self._queue_activation(user)
        return None

    async def _queue_activation(self, user: UserModel) -> None:
        await self.context.outbox.queue(
            EmailKind.ACTIVATION, to=user.email, user_id=user.id, where=user.signed_up_from, name=user.name
        )

    async def _get_token_user(self, token: str, purpose: TokenPurpose) -> UserModel:
        user = await self.uow.tokens.find_user(token, purpose)
        if user is None:
            raise InvalidTokenError
        return user

    async def _find_pending(self, token: str) -> tuple[PendingSignUp, str]:
        """The sign-up and its hash."""
        user = await self._get_token_user(token, TokenPurpose.ACTIVATION)
        live = await self.uow.users.list_live_sign_ups(user.email, limit=2)
        sign_up = PendingSignUp(
            user_id=user.id,
            email=user.email,
            name=user.name,
            signed_up_at=user.created_at,
            signed_up_from=user.signed_up_from,
            asks_password=len(live) > 1,
        )
        return sign_up, user.hashed_password

    async def _activate(
        self, token: str, purpose: TokenPurpose, event: AuditEvent, *, hashed_password: str | None = None
    ) -> UUID:
        user = await self._get_token_user(token, purpose)
        event.set_actor(user.id)
        await self.uow.users.lock_addresses(user.email)
        if not await self.uow.tokens.consume(token, purpose):
            raise InvalidTokenError
        try:
            is_activated = await self.uow.users.activate(user.id, hashed_password=hashed_password)
        except UserEmailTakenError:
            raise InvalidTokenError from None
        if not is_activated:
            raise InvalidTokenError
        if (await self.uow.users.get_record(user.id)).is_admin:
            event.changes = "is_admin=true"
        await self.uow.users.delete_pending(user.email)
        return user.id
