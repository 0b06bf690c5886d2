"""A server that answers as the range search of Have I Been Pwned does, on a loopback port."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PADDING = "0" * 35 + ":0"


def sha1(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


@dataclass
class RangeServer:
    """Knows passwords, and how often they were found in breaches; or sends `answer`, whatever is asked. It answers when
    `gate` is set; before that it is silent, or `drips` one byte after the other."""

    breached: dict[str, int] = field(default_factory=dict)
    answer: bytes | None = None
    drips: bool = False
    requests: list[str] = field(default_factory=list)
    asking: int = 0
    most_asking: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asking += 1
        self.most_asking = max(self.asking, self.most_asking)
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            while self.drips and not self.gate.is_set():
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.05)
            await self.gate.wait()
            writer.write(self.answer if self.answer is not None else self._find(self.requests[-1]))
            await writer.drain()
        except ConnectionError:
            pass  # whoever asked has given up
        finally:
            self.asking -= 1
            writer.close()

    def _find(self, request: str) -> bytes:
        prefix = request.split()[1].removeprefix("/range/")
        digests = {sha1(password): count for password, count in self.breached.items()}
        entries = [f"{digest[5:]}:{count}" for digest, count in digests.items() if digest.startswith(prefix)]
        return http(200, "\r\n".join([*entries, PADDING]))


def http(status: int, body: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()


@asynccontextmanager
async def run_range_server() -> AsyncGenerator[RangeServer, None]:
    ranges = RangeServer()
    ranges.gate.set()
    async with await asyncio.start_server(ranges.serve, "127.0.0.1", 0) as server:
        ranges.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/range/"
        yield ranges
        ranges.gate.set()
