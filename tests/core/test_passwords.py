import base64
import hmac
from unicodedata import normalize

import bcrypt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from src.core.exceptions import ValidationException
from src.core.hash_pool import HashKind, HashPool
from src.core.passwords import (
    PasswordHasher,
    check_password,
    hash_password,
    needs_rehash,
    verify_password,
)

ROUNDS = 4

COMPOSED, DECOMPOSED, MIXED = "forma-\u00e9\u00e9-senha", "forma-e\u0301e\u0301-senha", "forma-\u00e9e\u0301-senha"


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

        assume(normalize("NFC", other) != normalize("NFC", password))

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
    @pytest.fixture
    def costs(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Those that bcrypt is asked for."""
        costs, hash_for_real = list[int](), bcrypt.hashpw

        def hash_and_note(secret: bytes, salt: bytes) -> bytes:
            costs.append(int(salt.split(b"$")[2]))
            return hash_for_real(secret, salt)

        monkeypatch.setattr(bcrypt, "hashpw", hash_and_note)
        return costs

    @pytest.mark.parametrize(
        "stored",
        [None, "", "unreadable", hash_password("another", 7)],
        ids=["nobody", "empty", "unreadable", "another"],
    )
    def test_nobody_and_unreadable_cost_one_hash_like_a_wrong_password(
        self, costs: list[int], stored: str | None
    ) -> None:
        verify_password("strong-pass-12-chars", stored, rounds=7)

        assert costs == [7]

    @pytest.mark.parametrize(
        "stored",
        [hash_password("another", 4), bcrypt.hashpw(b"another", bcrypt.gensalt(4)).decode()],
        ids=["ours", "foreign"],
    )
    def test_a_wrong_password_costs_as_much_where_the_stored_cost_is_lower(self, costs: list[int], stored: str) -> None:
        verify_password("strong-pass-12-chars", stored, rounds=7)

        assert costs == [4, 4, 5, 6]
        assert sum(2**cost for cost in costs) == 2**7

    def test_the_right_password_pays_no_more_than_the_stored_cost(self, costs: list[int]) -> None:
        stored = hash_password("strong-pass-12-chars", 4)
        costs.clear()

        assert verify_password("strong-pass-12-chars", stored, rounds=7)
        assert costs == [4]

    @pytest.mark.parametrize("password", [COMPOSED, DECOMPOSED])
    def test_what_is_typed_decides_the_cost_and_never_what_is_stored(self, costs: list[int], password: str) -> None:
        stored_hashes = [None, *(hash_password(each, 7) for each in ("another", COMPOSED, DECOMPOSED))]
        stored_hashes += [bcrypt.hashpw(each.encode(), bcrypt.gensalt(7)).decode() for each in (COMPOSED, DECOMPOSED)]

        for stored in stored_hashes:
            costs.clear()
            verify_password(password, stored, rounds=7)
            assert costs == [7, 7]


class TestNormalization:
    @pytest.mark.parametrize("chosen", [COMPOSED, DECOMPOSED])
    @pytest.mark.parametrize("typed", [COMPOSED, DECOMPOSED])
    def test_each_form_of_a_password_verifies(self, chosen: str, typed: str) -> None:
        assert verify_password(typed, hash_password(chosen, ROUNDS), ROUNDS)

    def test_a_new_hash_is_of_the_composed_form(self) -> None:
        stored = hash_password(DECOMPOSED, ROUNDS)

        salt = stored.split("$")[3]
        secret = base64.b64encode(hmac.digest(salt.encode(), COMPOSED.encode(), "sha256"))
        assert bcrypt.hashpw(secret, f"$2b$04${salt}".encode()).decode()[-31:] == stored[-31:]

    @pytest.mark.parametrize("hashed", [COMPOSED, DECOMPOSED, MIXED])
    def test_a_foreign_hash_of_any_form_verifies_as_it_was_typed(self, hashed: str) -> None:
        stored = bcrypt.hashpw(hashed.encode(), bcrypt.gensalt(ROUNDS)).decode()

        assert verify_password(hashed, stored, ROUNDS)

    @pytest.mark.parametrize("typed", [COMPOSED, DECOMPOSED, MIXED])
    def test_a_foreign_hash_of_the_decomposed_form_verifies_however_it_is_typed(self, typed: str) -> None:
        stored = bcrypt.hashpw(DECOMPOSED.encode(), bcrypt.gensalt(ROUNDS)).decode()

        assert verify_password(typed, stored, ROUNDS)

    def test_what_only_looks_alike_is_another_password(self) -> None:
        stored = hash_password("office-ﬁle-of-mine", ROUNDS)  # a ligature, which only the K forms take apart

        assert not verify_password("office-file-of-mine", stored, ROUNDS)


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

    @pytest.mark.parametrize("password", ["e\u0301" * 6, "e\u0301" * 11])
    def test_length_is_counted_after_normalization(self, password: str) -> None:
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

    def test_no_form_of_the_address_is_a_password(self) -> None:
        for password in ("jos\u00e9.longname@example.com", "jose\u0301.longname@example.com"):
            with pytest.raises(ValidationException):
                self.check(password, email="jos\u00e9.longname@example.com")

    def test_the_licence_of_the_list_is_no_password(self) -> None:
        self.check("# Copyright (c) 2021 @zxcvbn-ts")


async def test_a_hasher_hashes_and_verifies_in_the_pool() -> None:
    hasher = PasswordHasher(HashPool(threads=1, queue_size=4), ROUNDS, origin="203.0.113.7")

    stored = await hasher.hash("strong-pass-12-chars", kind=HashKind.SIGN_UP)

    assert await hasher.verify("strong-pass-12-chars", stored, kind=HashKind.LOG_IN)
    assert not await hasher.verify("strong-pass-12-chars", None, kind=HashKind.LOG_IN)
