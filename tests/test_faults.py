"""The faults of `bench/faults`, shortly: each script says what it breaks and what it holds the service to."""

import pytest

from bench.faults import crash, cut, departures, first_connections, frozen, locked, sqlite_away, sqlite_read_only

pytestmark = pytest.mark.slow


def test_an_sqlite_file_that_is_taken_away_is_missed_until_it_is_back() -> None:
    assert sqlite_away.main(seconds=2) == 0


def test_an_sqlite_file_that_cannot_be_written_costs_no_descriptors() -> None:
    assert sqlite_read_only.main(seconds=5) == 0


def test_who_waits_for_a_locked_sqlite_is_refused_while_others_read() -> None:
    assert locked.main(seconds=5, lock_seconds=2) == 0


def test_a_frozen_postgresql_is_given_up_in_time() -> None:
    assert frozen.main(seconds=8, timeout_seconds=2) == 0


def test_several_processes_open_a_new_sqlite_file_at_once() -> None:
    assert first_connections.main(rounds=2) == 0


def test_a_postgresql_that_is_cut_off_is_given_up_in_time_and_found_again() -> None:
    assert cut.main(seconds=4, timeout_seconds=2) == 0


def test_what_clients_asked_for_that_have_left_is_not_done() -> None:
    assert departures.main(clients=500) == 0


@pytest.mark.parametrize("database", crash.DATABASES)
def test_a_kill_loses_nothing_that_was_acknowledged(database: str) -> None:
    assert crash.main(database, rounds=crash.DATABASE_TOO) == 0
