"""What the service writes to people, and what carries it."""

from typing import Protocol

from src.core.kinds import EmailKind
from src.email.messages import Locale, Message, MessageTemplates
from src.email.smtp import EmailUtils


class SendsEmail(Protocol):
    """What the service needs of `EmailUtils`. An application may wire in anything that has it."""

    async def send(self, message: Message) -> None:
        """Hand the message over. Whatever it raises, the message is tried again later, but for what a mail server
        refuses for good: see `src.services.outbox.refusal_of`."""
        ...


__all__ = ["EmailKind", "EmailUtils", "Locale", "Message", "MessageTemplates", "SendsEmail"]
