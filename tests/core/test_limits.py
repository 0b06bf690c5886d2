from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.limits import BlockedKeys, Rate

KEY = UUID(int=1)


@pytest.mark.parametrize(
    ("text", "count", "period"),
    [("10/15m", 10, 900), ("100/1h", 100, 3600), ("5/30s", 5, 30), ("1/2d", 1, 172_800), (" 300/1m ", 300, 60)],
)
def test_a_rate_is_a_number_and_a_period(text: str, count: int, period: int) -> None:
    assert Rate.parse(text) == Rate(count, period)


@pytest.mark.parametrize(
    "text", ["", "10", "10/", "/1m", "0/1m", "10/0m", "-1/1m", "10/15", "10/15w", "1.5/1m", "10 / 1m"]
)
def test_anything_else_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="such as 10/15m"):
        Rate.parse(text)


@given(st.text())
def test_reading_a_rate_raises_nothing_else(text: str) -> None:
    with suppress(ValueError):
        Rate.parse(text)


def test_a_place_is_free_again_after_an_even_share_of_the_period() -> None:
    assert Rate.parse("10/15m").interval == 90


def test_a_key_is_blocked_until_its_time() -> None:
    blocked = BlockedKeys()
    blocked.add(KEY, 60)

    assert 59 < blocked.seconds_left(KEY) <= 60
    assert blocked.seconds_left(uuid4()) == 0

    blocked.add(KEY, 0)
    assert blocked.seconds_left(KEY) == 0


def test_as_many_keys_are_remembered_as_there_is_room_for() -> None:
    blocked = BlockedKeys(size=2)
    keys = [uuid4() for _ in range(3)]

    for key in keys:
        blocked.add(key, 60)

    assert [blocked.seconds_left(key) > 0 for key in keys] == [False, True, True]
