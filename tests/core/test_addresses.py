import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.addresses import is_local, normalize_email


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


@pytest.mark.parametrize("domain", ["app.test", "corp.local", "x.localhost", "localhost"])
def test_developers_may_use_local_names(domain: str) -> None:
    assert normalize_email(f"Ana@{domain.upper()}") == f"ana@{domain}"
    assert is_local(f"ana@{domain}")
    assert not is_local(f"ana@{domain}.example.com")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no @"),
        ("canary", "has no @"),
        ("canary.invalid", "has no @"),
        ("canary@", "is not valid after the @"),
        ("ana@-canary.com", "is not valid after the @"),
        ("@example.com", "is not valid before the @"),
        ("a canary@example.com", "is not valid before the @"),
        ("a@canary@localhost", "is not valid before the @"),
        ("ana@canary.invalid", "reserved domain"),
        ("ana@canary.onion", "reserved domain"),
        ("ana@canary", "domain without a dot"),
        ("ana@test", "domain without a dot"),
        ("x" * 250 + "@example.com", "longer than the 254"),
    ],
)
def test_what_is_refused_says_why_without_repeating_it(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        normalize_email(text)

    assert "canary" not in str(raised.value)


@given(
    st.text(max_size=20),
    st.sampled_from(["example.com", "BÜCHER.de", "straße.de", "İ.com", "ß.example.com", "app.test", "localhost"]),
)
def test_normalizing_twice_changes_nothing(local: str, domain: str) -> None:
    try:
        once = normalize_email(f"{local}@{domain}")
    except ValueError:
        return

    assert normalize_email(once) == once
