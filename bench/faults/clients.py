"""Clients that do not behave: they send a request, and leave when they like."""

import asyncio
import json
from collections.abc import Mapping

HOST = "127.0.0.1"


def message(method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
    """A request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return head.encode() + b"\r\n\r\n" + content


async def send_and_leave(port: int, sent: bytes, *, after: float) -> None:
    """By a reset, after so many seconds."""
    _, writer = await asyncio.open_connection(HOST, port)
    writer.write(sent)
    await asyncio.sleep(after)
    writer.transport.abort()


async def ask(port: int, sent: bytes) -> int:
    """Wait for the answer; its status."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(sent.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    status = (await reader.readline()).split()[1:2]
    await reader.read()
    writer.close()
    return int(status[0]) if status else 0
