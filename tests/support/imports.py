"""Files of people as other systems export them."""

import json

HASH = "$2y$04$" + "a" * 21 + "u" + "b" * 31


def line(email: object, **values: object) -> bytes:
    return json.dumps({"email": email, "hashed_password": HASH} | values).encode() + b"\n"


def lines(count: int, *, start: int = 0) -> list[bytes]:
    return [line(f"person{number}@example.com") for number in range(start, start + count)]
