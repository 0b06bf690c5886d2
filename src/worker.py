"""`python -m src.worker`: sends emails, beside services that run with OUTBOX_IN_APP=false, or to send more at once.

As many as one likes may run beside each other and beside the services.
"""

import asyncio
import signal
import sys
from logging.config import dictConfig

from src.core.settings import get_settings
from src.db.database import AsyncDatabaseManager
from src.email import EmailUtils
from src.services.outbox import Dispatcher


async def work() -> None:
    """Send emails until stopped. Ends the process if SMTP is not configured."""
    settings = get_settings()
    email = EmailUtils.from_settings(settings)
    if email is None:
        sys.exit("SMTP is not configured: set SMTP_HOST and SMTP_FROM.")
    database = AsyncDatabaseManager.from_settings(settings)
    dispatcher = Dispatcher(database, email, settings)
    stopped = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    running = asyncio.create_task(dispatcher.run())
    await stopped.wait()
    await dispatcher.finish(running)
    await database.disconnect()


if __name__ == "__main__":
    dictConfig(get_settings().log_config)
    asyncio.run(work())
