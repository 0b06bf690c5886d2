"""Nothing gets through to PostgreSQL for a while: `python -m bench.faults.cut`

A proxy between the service and its database first closes every connection and takes no new one, then keeps them open
and lets no byte pass. Whoever asks gets a 503 within the limits of time, and the service recovers without a restart.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

from sqlalchemy import make_url, text

from bench.databases import postgresql
from bench.faults.probes import probing
from bench.limits import Limit, report
from bench.service import running_service
from src.db import AsyncDatabaseManager
from src.db.connections import CONNECT_TIMEOUT_SECONDS

TIMEOUT_SECONDS = 10  # the default of the settings
SLACK_SECONDS = 2.5
RECOVERY_SECONDS = 5
CHUNK = 64 * 1024


class Proxy:
    """Passes on what goes to a unix socket and comes back, in a thread of its own, until told otherwise."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._loop = asyncio.new_event_loop()
        self._writers = set[asyncio.StreamWriter]()
        self._is_open = asyncio.Event()
        self._is_refusing = False
        self._server: asyncio.Server | None = None
        self.port = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        self._call(self._serve())
        try:
            yield
        finally:
            self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def close_connections(self) -> None:
        """And take no new one."""
        self._call(self._set(is_open=True, is_refusing=True))

    def swallow(self) -> None:
        """Keep connections, and pass nothing on."""
        self._call(self._set(is_open=False, is_refusing=False))

    def mend(self) -> None:
        self._call(self._set(is_open=True, is_refusing=False))

    def _call(self, work: asyncio.Future[None] | object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]  # a coroutine

    async def _serve(self) -> None:
        self._is_open.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        await self._set(is_open=True, is_refusing=True)
        if self._server:
            self._server.close()
        passing = asyncio.all_tasks() - {asyncio.current_task()}
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)
        await asyncio.sleep(0.1)  # until the loop has closed the aborted connections

    async def _set(self, *, is_open: bool, is_refusing: bool) -> None:
        self._is_refusing = is_refusing
        if is_open:
            self._is_open.set()
        else:
            self._is_open.clear()
        if is_refusing:
            for writer in self._writers:
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_unix_connection(self._socket)
        self._writers |= {writer, there_writer}
        await asyncio.gather(self._pass_on(reader, there_writer), self._pass_on(there_reader, writer))
        self._writers -= {writer, there_writer}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while content := await reader.read(CHUNK):
                await self._is_open.wait()
                writer.write(content)
                await writer.drain()
        writer.close()


async def count_busy(url: str) -> int:
    """Connections of others that are in a transaction or a statement."""
    database = AsyncDatabaseManager(url)
    busy = text("SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state NOT IN ('idle', '')")
    async with database.session() as session:
        count: int = await session.scalar(busy)
    await database.disconnect()
    return count


def main(seconds: float, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
    settings = {
        "DATABASE_POOL_TIMEOUT_SECONDS": str(timeout_seconds),
        "DATABASE_STATEMENT_TIMEOUT_SECONDS": str(timeout_seconds),
    }
    with postgresql() as create:
        url = make_url(create("users"))
        proxy = Proxy(f"{url.query['host']}/.s.PGSQL.5432")
        with proxy.running():
            proxied = url.difference_update_query(["host"]).set(host="127.0.0.1", port=proxy.port)
            shown = proxied.render_as_string(hide_password=False)
            with running_service(shown, settings) as service:
                with probing(service) as probes:
                    probes.begin("before")
                    time.sleep(2)
                    for name, break_it in (("closed", proxy.close_connections), ("swallowed", proxy.swallow)):
                        break_it()
                        probes.begin(name)
                        time.sleep(seconds)
                        proxy.mend()
                        probes.begin(f"after {name}")
                        time.sleep(timeout_seconds + RECOVERY_SECONDS)
                time.sleep(1)
                busy = asyncio.run(count_busy(url.render_as_string(hide_password=False)))
                log = service.log.read_text()
    most = max(timeout_seconds, CONNECT_TIMEOUT_SECONDS) + SLACK_SECONDS
    limits = [
        Limit("connections that are busy in the end", busy, at_most=0),
        Limit("tracebacks", log.count("Traceback") + log.count("The request failed"), at_most=0),
    ]
    for name in ("closed", "swallowed"):
        limits.append(Limit(f"{name}: slowest sign of life, in s", probes.slowest(name, "live"), at_most=1))
        for kind in ("read", "write"):
            during, after = probes.statuses(name, kind), probes.of(f"after {name}", kind)[-30:-10]
            limits += [
                Limit(f"{name}: slowest {kind}, in s", probes.slowest(name, kind), at_most=most),
                Limit(f"{name}: {kind}s but 200 and 503", during.total() - during[200] - during[503], at_most=0),
                Limit(
                    f"{name}: share of 200 of the {kind}s after it",
                    sum(answer.status == 200 for answer in after) / len(after),
                    at_least=1,
                ),
            ]
    return report(limits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long nothing gets through")
    sys.exit(main(parser.parse_args().seconds))
