from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from src.core.kinds import EmailKind, TokenPurpose
from src.email.catalogue import CATALOGUE, LINK_KINDS
from tests.support.factories import make_record
from tests.support.service import make_settings

NOW = datetime.now(UTC)
ADDRESS = "ana@example.com"
ACTIVE = make_record(email=ADDRESS, is_active=True, activated_at=NOW, created_at=NOW)
PENDING = replace(ACTIVE, is_active=False, activated_at=None)
DISABLED = replace(ACTIVE, is_active=False)
MOVED = replace(ACTIVE, email="elsewhere@example.com")
OVER = replace(PENDING, created_at=NOW - timedelta(hours=48))

STILL_SENT = {
    EmailKind.ACTIVATION: {"pending"},
    EmailKind.INVITATION: {"pending", "over"},
    EmailKind.ALREADY_REGISTERED: {"active", "disabled", "pending", "over"},
    EmailKind.PASSWORD_RESET: {"active"},
    EmailKind.EMAIL_CHANGE: {"active", "moved"},
    EmailKind.EMAIL_CHANGED: {"active", "moved", "nobody"},
}
WHOM = {"active": ACTIVE, "pending": PENDING, "disabled": DISABLED, "moved": MOVED, "over": OVER, "nobody": None}


def test_each_kind_has_an_entry() -> None:
    assert CATALOGUE.keys() == set(EmailKind)


@pytest.mark.parametrize("kind", EmailKind)
def test_an_email_is_sent_while_what_it_is_about_still_holds(kind: EmailKind) -> None:
    sent = {name for name, user in WHOM.items() if not CATALOGUE[kind].is_pointless(user, ADDRESS, make_settings())}

    assert sent == STILL_SENT.get(kind, WHOM.keys())


def test_each_purpose_but_that_of_a_log_in_has_one_email_that_brings_its_link() -> None:
    purposes = [entry.link.purpose for entry in CATALOGUE.values() if entry.link]

    # Whoever reads somebody's emails must not get past the password by one.
    assert sorted(purposes) == sorted(set(TokenPurpose) - {TokenPurpose.SECOND_FACTOR})


@pytest.mark.parametrize("kind", [kind for kind in EmailKind if CATALOGUE[kind].link])
def test_a_link_has_a_lifetime_and_a_place_for_its_token(kind: EmailKind) -> None:
    link = CATALOGUE[kind].link
    assert link is not None

    seconds, template = link.terms(make_settings())

    assert seconds > 0
    assert template.count("{token}") == 1


def test_the_link_that_undoes_an_address_change_survives_a_new_password() -> None:
    assert set(LINK_KINDS) == {
        EmailKind.ACTIVATION,
        EmailKind.INVITATION,
        EmailKind.PASSWORD_RESET,
        EmailKind.EMAIL_CHANGE,
    }
