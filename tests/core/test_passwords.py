import asyncio
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.exceptions import ServiceUnavailableException, ValidationException
from src.core.passwords import (
    NICENESS,
    HashPool,
    PasswordHasher,
    check_password,
    hash_password,
    needs_rehash,
    never_disconnected,
    verify_password,
)

ROUNDS = 4


class TestStoredForm:
    def test_it_is_passlibs_bcrypt_sha256_version_2(self) -> None:
        # The example of passlib's own documentation.
        stored = "$bcrypt-sha256$v=2,t=2b,r=12$n79VH.0Q2TMWmt3Oqt9uku$Kq4Noyk3094Y2QlB8NdRT8SvGiI4ft2"

        assert verify_password("password", stored, ROUNDS)
        assert not verify_password("passwore", stored, ROUNDS)

    def test_it_names_its_cost(self) -> None:
        assert hash_password("strong-pass-12-chars", 5).startswith("$bcrypt-sha256$v=2,t=2b,r=5$")

    def test_two_hashes_of_one_password_differ(self) -> None:
        assert hash_password("strong-pass-12-chars", ROUNDS) != hash_password("strong-pass-12-chars", ROUNDS)

    @settings(max_examples=30, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100), st.text(max_size=3), st.integers(0, 100))
    def test_any_text_verifies_and_no_other(self, password: str, piece: str, place: int) -> None:
        other = password[:place] + (piece.encode("utf-8", "replace").decode() or "x") + password[place:]

        stored = hash_password(password, ROUNDS)

        assert verify_password(password, stored, ROUNDS)
        assert not verify_password(other, stored, ROUNDS)

    def test_bytes_beyond_bcrypts_seventy_two_count(self) -> None:
        stored = hash_password("x" * 72 + "a", ROUNDS)

        assert not verify_password("x" * 72 + "b", stored, ROUNDS)


class TestForeignHashes:
    @pytest.mark.parametrize("variant", ["2a", "2b", "2y"])
    @pytest.mark.parametrize("password", ["strong-pass-12-chars", "pässwörd 🔑", "x" * 200])
    def test_plain_bcrypt_verifies_on_its_first_72_bytes(self, variant: str, password: str) -> None:
        made = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(ROUNDS)).decode()
        stored = made.replace("$2b$", f"${variant}$")

        assert verify_password(password, stored, ROUNDS)
        assert not verify_password("another password", stored, ROUNDS)
        assert needs_rehash(stored, ROUNDS)

    @pytest.mark.parametrize(
        "stored",
        [
            "",
            "<bcrypt-hash>",
            "!",
            "$2b$12$tooshort",
            "$2x$04$" + "a" * 53,
            "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA",
            "$bcrypt-sha256$v=1,t=2b,r=4$" + "a" * 22 + "$" + "b" * 31,
            "$bcrypt-sha256$v=2,t=2b,r=99$" + "a" * 22 + "$" + "b" * 31,
            "$2b$04$" + "a" * 53 + "\n",
            "$2b$04$" + "a" * 21 + "a" + "b" * 31,  # bits in the salt that must be zero
            "$bcrypt-sha256$v=2,t=2b,r=4$" + "a" * 22 + "$" + "b" * 31,
        ],
    )
    def test_a_hash_that_cannot_be_read_is_a_mismatch(self, stored: str) -> None:
        assert not verify_password("strong-pass-12-chars", stored, ROUNDS)
        assert needs_rehash(stored, ROUNDS)


class TestRehash:
    def test_a_cheaper_hash_is_replaced(self) -> None:
        assert needs_rehash(hash_password("strong-pass-12-chars", 4), rounds=5)

    def test_one_of_this_cost_or_more_is_kept(self) -> None:
        assert not needs_rehash(hash_password("strong-pass-12-chars", 5), rounds=5)
        assert not needs_rehash(hash_password("strong-pass-12-chars", 5), rounds=4)


class TestEqualCost:
    @pytest.mark.parametrize(
        "stored",
        [None, "", "unreadable", hash_password("another", ROUNDS)],
        ids=["nobody", "empty", "unreadable", "another"],
    )
    def test_nobody_and_unreadable_cost_one_hash_like_a_wrong_password(self, stored: str | None) -> None:
        hashes = 0

        def count(_frame: FrameType, event: str, function: object) -> None:
            nonlocal hashes
            hashes += event == "c_call" and function is bcrypt.hashpw

        sys.setprofile(count)
        verify_password("strong-pass-12-chars", stored, ROUNDS)
        sys.setprofile(None)

        assert hashes == 1


class TestPolicy:
    def check(self, password: str, email: str = "ana@example.com") -> None:
        check_password(password, email=email, min_length=12)

    @pytest.mark.parametrize("password", ["a" * 12, "correct horse battery", "🔑" * 12, "            "])
    def test_length_is_enough_and_no_composition_is_asked_for(self, password: str) -> None:
        self.check(password)

    @pytest.mark.parametrize("password", ["", "a" * 11, "🔑" * 11])
    def test_length_is_counted_in_characters(self, password: str) -> None:
        with pytest.raises(ValidationException):
            self.check(password)

    @pytest.mark.parametrize("password", ["qwerty123456", "QWERTY123456", "123456789987654321"])
    def test_common_passwords_are_refused(self, password: str) -> None:
        with pytest.raises(ValidationException):
            self.check(password)

    def test_no_spelling_of_the_address_is_a_password(self) -> None:
        for password in ("STRASSE.LANG@EXAMPLE.COM", "straße.lang@example.com"):
            with pytest.raises(ValidationException):
                self.check(password, email="straße.lang@example.com")

    def test_the_licence_of_the_list_is_no_password(self) -> None:
        self.check("# Copyright (c) 2021 @zxcvbn-ts")


class TestPool:
    async def run(self, pool: HashPool, work: Callable[[], None], share: float = 1.0) -> None:
        await pool.run(work, queue_share=share, is_disconnected=never_disconnected)

    def wait(self, release: threading.Event) -> None:
        assert release.wait(10)

    async def fill(self, pool: HashPool, release: threading.Event, jobs: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.run(pool, lambda: self.wait(release))) for _ in range(jobs)]
        await asyncio.sleep(0)
        return tasks

    async def test_a_full_queue_refuses_at_once(self) -> None:
        pool, release = HashPool(threads=1, queue_size=2), threading.Event()
        tasks = await self.fill(pool, release, jobs=3)

        with pytest.raises(ServiceUnavailableException):
            await self.run(pool, release.set)

        assert not release.is_set()
        release.set()
        await asyncio.gather(*tasks)
        await self.run(pool, lambda: None)

    async def test_a_share_of_the_queue_is_full_sooner(self) -> None:
        pool, release = HashPool(threads=1, queue_size=4), threading.Event()
        tasks = await self.fill(pool, release, jobs=3)

        with pytest.raises(ServiceUnavailableException):
            await self.run(pool, lambda: None, share=0.5)
        waiting = asyncio.create_task(self.run(pool, lambda: None))

        release.set()
        await asyncio.gather(waiting, *tasks)

    async def test_a_job_whose_caller_has_gone_is_dropped(self) -> None:
        pool, has_run = HashPool(threads=1, queue_size=2), threading.Event()

        async def gone() -> bool:
            return True

        with pytest.raises(ServiceUnavailableException):
            await pool.run(has_run.set, queue_share=1.0, is_disconnected=gone)

        assert not has_run.is_set()

    async def test_a_cancelled_job_gives_its_place_back(self) -> None:
        pool, release = HashPool(threads=1, queue_size=2), threading.Event()
        tasks = await self.fill(pool, release, jobs=3)

        tasks[-1].cancel()
        await asyncio.gather(tasks[-1], return_exceptions=True)

        assert pool.waiting == 1
        release.set()
        await asyncio.gather(*tasks[:-1])

    async def test_the_event_loop_runs_while_threads_hash(self) -> None:
        pool, release = HashPool(threads=2, queue_size=2), threading.Event()
        tasks = await self.fill(pool, release, jobs=2)

        asyncio.get_running_loop().call_soon(release.set)

        await asyncio.gather(*tasks)

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities per thread")
    async def test_threads_that_hash_step_behind_the_event_loop(self) -> None:
        pool, niceness = HashPool(threads=1, queue_size=2), list[int]()

        await self.run(pool, lambda: niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

        assert niceness == [NICENESS + os.getpriority(os.PRIO_PROCESS, os.getpid())]

    async def test_a_hasher_hashes_and_verifies_in_the_pool(self) -> None:
        hasher = PasswordHasher(HashPool(threads=1, queue_size=2), ROUNDS)

        stored = await hasher.hash("strong-pass-12-chars")

        assert await hasher.verify("strong-pass-12-chars", stored)
        assert not await hasher.verify("strong-pass-12-chars", None)
