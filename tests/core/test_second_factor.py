"""Codes: which of them are right, and what they look like."""

import re
from base64 import b32decode, b32encode
from collections.abc import Callable
from uuid import uuid4

import pytest
from pyotp import TOTP, parse_uri

from src.core.second_factor import (
    RECOVERY_CODES,
    draw_qr_code,
    find_step,
    hash_recovery_code,
    new_recovery_codes,
    new_totp_secret,
    normalize_totp_secret,
    otpauth_uri,
)

SECRET = b32encode(b"12345678901234567890").decode()  # that of RFC 6238, appendix B
SHORT_SECRET = b32encode(b"1234567890").decode()
NOW = 1_111_111_109
STEP = NOW // 30


class TestTotp:
    @pytest.mark.parametrize(
        ("at", "code"),
        [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ],
    )
    def test_the_vectors_of_rfc_6238_are_right_in_their_last_six_digits(self, at: int, code: str) -> None:
        assert find_step(SECRET, code, at=at) == at // 30

    @pytest.mark.parametrize(("steps", "is_right"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
    def test_a_clock_may_differ_by_one_step_either_way(self, steps: int, is_right: bool) -> None:  # noqa: FBT001
        code = TOTP(SECRET).generate_otp(STEP + steps)

        assert find_step(SECRET, code, at=NOW) == (STEP + steps if is_right else None)

    def test_unless_it_is_told_otherwise_the_time_is_now(self) -> None:
        assert find_step(SECRET, TOTP(SECRET).now()) is not None

    def test_the_code_of_another_secret_is_wrong(self) -> None:
        assert find_step(new_totp_secret(), "081804", at=NOW) is None

    @pytest.mark.parametrize("typed", ["081 804", " 081804 ", "0 8 1 8 0 4"])
    def test_spaces_do_not_count(self, typed: str) -> None:
        assert find_step(SECRET, typed, at=NOW) == STEP

    @pytest.mark.parametrize(
        "typed",
        ["", "81804", "0081804", "081804\n", "081-804", "+81804", "08180a", "٠٨١٨٠٤", "０８１８０４", "\ud800"],
    )
    def test_what_is_not_six_digits_is_wrong(self, typed: str) -> None:
        assert find_step(SECRET, typed, at=NOW) is None

    def test_a_secret_has_160_random_bits(self) -> None:
        one, other = new_totp_secret(), new_totp_secret()

        assert one != other
        assert len(b32decode(one)) == 20


class TestSecretsOfOtherSystems:
    @pytest.mark.parametrize(
        ("text", "normalized"),
        [
            (SECRET, SECRET),
            ("GEZD GNBV GY3T QOJQ", SHORT_SECRET),
            (b32encode(b"eleven byte").decode(), "MVWGK5TFNYQGE6LUMU"),
            ("mvwgk5tfnyqge6lumu", "MVWGK5TFNYQGE6LUMU"),
        ],
    )
    def test_they_are_written_as_ours(self, text: str, normalized: str) -> None:
        assert normalize_totp_secret(text) == normalized

    def test_the_codes_of_the_shortest_that_are_taken_are_right(self) -> None:
        padded = b32encode(b"1234567890".ljust(20, b"\0")).decode()  # HMAC pads its key with zeros, so it is the same

        assert find_step(SHORT_SECRET, TOTP(padded).generate_otp(STEP), at=NOW) == STEP

    @pytest.mark.parametrize(
        "text", ["JBSWY3DPEHPK3PX1", "JBSWY3DPEHPK3PXPA", "JBSWY3DP=EHPK3PXP", "JBSWY3DPEHPK3PXſ", "otpauth://totp/x"]
    )
    def test_what_is_not_base32_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^is not base32$"):
            normalize_totp_secret(text)

    @pytest.mark.parametrize("text", ["", "=", b32encode(b"9 bytes..").decode()])
    def test_one_that_could_be_guessed_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^must have at least 80 bits$"):
            normalize_totp_secret(text)


class TestUri:
    def test_an_app_reads_whose_it_is_and_what_it_shares(self) -> None:
        uri = otpauth_uri(SECRET, account="ana@example.com", issuer="Accounts & more")

        read = parse_uri(uri)
        assert isinstance(read, TOTP)
        assert (read.name, read.issuer, read.secret) == ("ana@example.com", "Accounts & more", SECRET)
        assert (read.digits, read.interval) == (6, 30)

    def test_its_qr_code_is_an_svg_that_differs_with_it(self) -> None:
        one, other = (draw_qr_code(otpauth_uri(SECRET, account=name, issuer="Accounts")) for name in ("ana", "ben"))

        assert one.startswith("<svg ")
        assert one != other


class TestRecoveryCodes:
    def test_they_are_ten_of_80_bits_and_none_twice(self) -> None:
        codes = new_recovery_codes()

        assert len(set(codes)) == RECOVERY_CODES == 10
        for code in codes:
            assert re.fullmatch(r"[a-z2-7]{4}(-[a-z2-7]{4}){3}", code)
            assert len(b32decode(code.replace("-", "").upper())) == 10

    @pytest.mark.parametrize(
        "type_it",
        [
            pytest.param(str.upper, id="in capitals"),
            pytest.param(lambda code: code.replace("-", ""), id="without dashes"),
            pytest.param(lambda code: code.replace("-", " "), id="with spaces"),
            pytest.param(lambda code: f" {code}\n", id="pasted with what is around it"),
        ],
    )
    def test_the_hash_is_the_same_however_the_code_is_typed(self, type_it: Callable[[str], str]) -> None:
        ana, code = uuid4(), new_recovery_codes()[0]

        assert hash_recovery_code(type_it(code), ana) == hash_recovery_code(code, ana)

    def test_the_hashes_of_two_codes_or_of_two_users_differ(self) -> None:
        ana, ben = uuid4(), uuid4()
        one, other = new_recovery_codes()[:2]

        assert len({hash_recovery_code(code, user) for code in (one, other) for user in (ana, ben)}) == 4

    def test_junk_has_a_hash_too(self) -> None:
        assert re.fullmatch(r"[0-9a-f]{64}", hash_recovery_code("\ud800\x00-é", uuid4()))
