"""The emails, a row for each kind: the link that it brings, whether it is a notice, and when it is pointless.

A new email is a row here and a template for each language; one with a link also needs its setting and a page.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from src.core.kinds import EmailKind, TokenPurpose
from src.core.settings import DAY, Settings
from src.core.users import UserRecord

# Given the user whom it is about, if they are there, the recipient, and the settings.
IsPointless = Callable[[UserRecord | None, str, Settings], bool]


@dataclass(frozen=True, slots=True)
class Link:
    """The one-time token that an email brings. `terms` are its lifetime in seconds, and the URL template around it."""

    purpose: TokenPurpose
    terms: Callable[[Settings], tuple[int, str]]
    ends_with_sign_up: bool = False  # the lifetime counts from the sign-up, however late the email is sent
    moves_account: bool = False  # to the address that the email goes to


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A notice tells an owner of something that has happened. Nobody may be able to silence it, so it is queued even
    while another like it waits."""

    link: Link | None = None
    is_notice: bool = False
    is_pointless: IsPointless = lambda _user, _to, _settings: False


def _unless_pending(user: UserRecord | None, to: str, _settings: Settings) -> bool:
    return user is None or user.activated_at is not None or user.email != to


def _unless_signing_up(user: UserRecord | None, to: str, settings: Settings) -> bool:
    if user is None or _unless_pending(user, to, settings):
        return True
    return user.created_at + timedelta(seconds=settings.auth_activation_ttl_seconds) <= datetime.now(UTC)


def _unless_owner(user: UserRecord | None, to: str, _settings: Settings) -> bool:
    return user is None or user.email != to


def _unless_active_owner(user: UserRecord | None, to: str, _settings: Settings) -> bool:
    return user is None or not user.is_active or user.email != to


def _unless_active(user: UserRecord | None, _to: str, _settings: Settings) -> bool:
    return user is None or not user.is_active


def _if_disabled(user: UserRecord | None, _to: str, _settings: Settings) -> bool:
    return user is not None and not user.is_active


CATALOGUE: Mapping[EmailKind, CatalogueEntry] = {
    EmailKind.ACTIVATION: CatalogueEntry(
        Link(
            TokenPurpose.ACTIVATION,
            lambda s: (s.auth_activation_ttl_seconds, s.auth_activation_url_template),
            ends_with_sign_up=True,
        ),
        is_pointless=_unless_signing_up,
    ),
    EmailKind.INVITATION: CatalogueEntry(
        Link(TokenPurpose.INVITATION, lambda s: (s.auth_invitation_ttl_seconds, s.auth_invitation_url_template)),
        is_pointless=_unless_pending,
    ),
    EmailKind.ALREADY_REGISTERED: CatalogueEntry(is_pointless=_unless_owner),
    EmailKind.PASSWORD_RESET: CatalogueEntry(
        Link(
            TokenPurpose.PASSWORD_RESET,
            lambda s: (s.auth_password_reset_ttl_seconds, s.auth_password_reset_url_template),
        ),
        is_pointless=_unless_active_owner,
    ),
    EmailKind.EMAIL_CHANGE: CatalogueEntry(
        Link(
            TokenPurpose.EMAIL_CHANGE,
            lambda s: (s.auth_email_change_ttl_seconds, s.auth_email_change_url_template),
            moves_account=True,
        ),
        is_pointless=_unless_active,
    ),
    # It goes to the address that the account has left, and is sent without its link if the account is gone.
    EmailKind.EMAIL_CHANGED: CatalogueEntry(
        Link(
            TokenPurpose.EMAIL_REVERT,
            lambda _: (7 * DAY, "{SERVER_PUBLIC_URL}/email-revert?token={token}"),
            moves_account=True,
        ),
        is_notice=True,
        is_pointless=_if_disabled,
    ),
    EmailKind.PASSWORD_CHANGED: CatalogueEntry(is_notice=True),
    EmailKind.REFRESH_REPLAYED: CatalogueEntry(is_notice=True),
    EmailKind.ACCOUNT_DELETED: CatalogueEntry(is_notice=True),
    EmailKind.ACCOUNT_REMOVED: CatalogueEntry(is_notice=True),
    EmailKind.SECOND_FACTOR_SET: CatalogueEntry(is_notice=True),
    EmailKind.SECOND_FACTOR_REMOVED: CatalogueEntry(is_notice=True),
    EmailKind.RECOVERY_CODES_RENEWED: CatalogueEntry(is_notice=True),
    EmailKind.RECOVERY_CODE_USED: CatalogueEntry(is_notice=True),
    EmailKind.NEW_LOG_IN: CatalogueEntry(is_notice=True),
}

# What a new password or address cancels while it waits. The notice that undoes an address change is not among them.
LINK_KINDS = tuple(kind for kind, entry in CATALOGUE.items() if entry.link and not entry.is_notice)
