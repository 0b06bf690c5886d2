"""The faults of `bench/faults`, shortly: each script says what it breaks and what it holds the service to."""

import pytest

from bench.faults import frozen, locked, sqlite_away, sqlite_read_only

pytestmark = pytest.mark.slow


def test_an_sqlite_file_that_is_taken_away_is_missed_until_it_is_back() -> None:
    assert sqlite_away.main(seconds=2) == 0


def test_an_sqlite_file_that_cannot_be_written_costs_no_descriptors() -> None:
    assert sqlite_read_only.main(seconds=5) == 0


def test_who_waits_for_a_locked_sqlite_is_refused_while_others_read() -> None:
    assert locked.main(seconds=5, lock_seconds=2) == 0


def test_a_frozen_postgresql_is_given_up_in_time() -> None:
    assert frozen.main(seconds=8, timeout_seconds=2) == 0
