"""Sending one message without letting its failure reach the person who caused it."""

import logging

from src.email import EmailUtils, Message

log = logging.getLogger(__name__)


async def deliver(email: EmailUtils, message: Message) -> None:
    """Send the message. A failure is logged by its kind alone, since its text may quote the link."""
    try:
        await email.send(message)
    except Exception as error:  # noqa: BLE001 - whatever the carrier raises, the sign-up itself has succeeded
        log.error("A mail could not be sent (%s); its reader can ask for it again", type(error).__qualname__)  # noqa: TRY400
