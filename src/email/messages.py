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
