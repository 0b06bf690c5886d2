import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.addresses import normalize_email


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("Ana@Example.COM", "ana@example.com"),
        ("ana@BÜCHER.example.com", "ana@xn--bcher-kva.example.com"),
        ("ana@xn--bcher-kva.example.com", "ana@xn--bcher-kva.example.com"),
        ("ana+tag@example.com", "ana+tag@example.com"),
        ("AN\u0041\u0301@example.com", "an\u00e1@example.com"),
    ],
)
def test_one_mailbox_has_one_spelling(written: str, stored: str) -> None:
    assert normalize_email(written) == stored


@pytest.mark.parametrize(
    "text", ["", "ana", "ana@", "@example.com", "a b@example.com", "ana@localhost", "a@b@example.com", "x" * 400]
)
def test_what_is_no_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not an e-mail address, such as name@example\.com$"):
        normalize_email(text)


@given(st.text(max_size=20), st.sampled_from(["example.com", "BÜCHER.de", "straße.de", "İ.com", "ß.example.com"]))
def test_normalizing_twice_changes_nothing(local: str, domain: str) -> None:
    try:
        once = normalize_email(f"{local}@{domain}")
    except ValueError:
        return

    assert normalize_email(once) == once
