"""Steps that several use cases take on an account, each in the caller's transaction. None commits."""

from uuid import UUID

from src.core.callers import Caller
from src.core.exceptions import LastAdminError
from src.core.kinds import EmailKind, TokenPurpose
from src.db.models import EventKind, UserModel
from src.db.unit_of_work import UnitOfWork
from src.email.catalogue import LINK_KINDS
from src.services.context import Context


async def revoke_credentials(
    uow: UnitOfWork, user_id: UUID, *, keep_session: UUID | None = None, keep_revert: bool = True
) -> None:
    """End all that lets somebody in: the links that were mailed, the emails that would bring one, and every session but
    the one to keep.

    The link that undoes an address change stays, unless `keep_revert` is false: a new password or address may be that
    of a thief who has moved the account, and the owner has no other way back.
    """
    await uow.tokens.revoke_all(user_id, keep=TokenPurpose.EMAIL_REVERT if keep_revert else None)
    await uow.emails.cancel(user_id, LINK_KINDS if keep_revert else [*LINK_KINDS, EmailKind.EMAIL_CHANGED])
    await uow.sessions.revoke_all(user_id, except_id=keep_session)


async def require_another_admin(uow: UnitOfWork, user_id: UUID) -> None:
    """Raises `LastAdminError` if nobody else is an active administrator. They must be locked, or it could change."""
    if not await uow.users.has_other_admin(user_id):
        raise LastAdminError


async def demote_invited(context: Context, caller: Caller) -> None:
    """Let no invitation that waits make an administrator, now that one ceases to be; each leaves an event."""
    for user_id in await context.uow.users.demote_invited():
        event = context.audit.new_event(EventKind.USER_UPDATE, by=caller, user_id=user_id)
        event.changes = "is_admin=false"
        await context.audit.add(event)


async def erase_account(context: Context, caller: Caller, user: UserModel) -> None:
    """Delete an account, locked with all administrators, and all that belongs to it; of the emails to its owner, only
    the notices stay until they are sent. Raises `LastAdminError`."""
    uow = context.uow
    if user.is_active_admin:
        await require_another_admin(uow, user.id)
        await demote_invited(context, caller)
    await uow.emails.forget_address(user.email)
    await uow.emails.detach_from_user(user.id, [EmailKind.EMAIL_CHANGED])
    await uow.users.delete_pending(user.email)
    await uow.users.delete(user)
