"""The messages, one function each."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Message:
    """A mail: plain text, to one address."""

    to: str
    subject: str
    text: str


def activation(*, to: str, name: str | None, url: str, signed_up_at: datetime, signed_up_from: str | None) -> Message:
    """Asks the owner of an address to confirm a sign-up, and tells which one, so that nobody confirms a stranger's."""
    return Message(
        to=to,
        subject="Confirm your e-mail address",
        text=(
            f"Somebody signed up with this address: {name or 'no name given'}, on {signed_up_at:%d %B %Y at %H:%M} UTC,"
            f" from {signed_up_from or 'an unknown place'}.\n\n"
            f"If it was you, confirm it here:\n{url}\n\n"
            "If it was not you, do nothing: without the link the sign-up ends by itself.\n"
        ),
    )


def already_registered(*, to: str) -> Message:
    """Tells an owner that somebody, perhaps they themselves, signed up again with their address."""
    return Message(
        to=to,
        subject="You already have an account",
        text=(
            "Somebody signed up with this address, which already has an account.\n\n"
            "If it was you, log in with the password that you have, or reset it.\n"
            "If it was not you, do nothing: your account is as it was.\n"
        ),
    )


def password_reset(*, to: str, url: str) -> Message:
    """Lets the owner of an account set a new password."""
    return Message(
        to=to,
        subject="Reset your password",
        text=(
            f"Somebody asked to reset the password of your account. If it was you, set a new one here:\n{url}\n\n"
            "If it was not you, do nothing: your password is as it was.\n"
        ),
    )


def email_change(*, to: str, url: str) -> Message:
    """Asks the reader of the new address whether an account may move to it."""
    return Message(
        to=to,
        subject="Confirm your new e-mail address",
        text=(
            f"Somebody asked to move their account to this address. If it was you, confirm it here:\n{url}\n\n"
            "If it was not you, do nothing: without the link nothing changes.\n"
        ),
    )
