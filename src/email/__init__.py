"""What the service writes to people, and the interface of what carries it."""

from typing import Protocol

from src.email.messages import Message


class EmailUtils(Protocol):
    """Carries a message to its reader. The service mails links when an object like this is wired in."""

    async def send(self, message: Message) -> None:
        """Hand the message over. May raise anything: the caller logs the kind of failure, never the text."""
        ...


__all__ = ["EmailUtils", "Message"]
