"""What the service writes to people, and what carries it."""

from typing import Protocol

from src.email.messages import Locale, Message, MessageKind, MessageTemplates
from src.email.smtp import EmailUtils


class SendsMail(Protocol):
    """What the service needs of `EmailUtils`. An application may wire in anything that has it."""

    async def send(self, message: Message) -> None:
        """Hand the message over. Whatever it raises, the message is tried again later."""
        ...


__all__ = ["EmailUtils", "Locale", "Message", "MessageKind", "MessageTemplates", "SendsMail"]
