"""The pages behind emailed links, as people use them: from the email to the log-in, without JavaScript."""

import pytest
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By

from tests.support.browser import Browser, Live
from tests.support.smtp_server import link_in
from tests.support.steps import PASSWORD

pytestmark = pytest.mark.slow

NEW_PASSWORD = "another-long-password"


def test_no_script_runs_in_this_browser(browser: Browser) -> None:
    browser.show("<title>Still</title><script>document.title = 'Moved'</script>")

    assert browser.driver.title == "Still"


class TestActivation:
    def test_the_link_and_one_button_activate_the_account(self, live: Live, browser: Browser, email: str) -> None:
        message = live.sign_up(email, name="Ana")
        assert not live.can_log_in(email)

        browser.open_email(message)
        browser.follow("Confirm this address")
        assert browser.heading == "Confirm your e-mail address"
        assert "Ana" in browser.driver.find_element(By.TAG_NAME, "dl").text
        browser.press("Confirm this address")

        assert browser.heading == "Your account is active"
        assert live.can_log_in(email)

    def test_scanners_that_open_the_link_first_spend_nothing(self, live: Live, browser: Browser, email: str) -> None:
        message = live.sign_up(email)
        for method in ("GET", "HEAD") * 20:
            assert live.client.request(method, link_in(message)).status_code == 200

        browser.open_email(message)
        browser.follow("Confirm this address")
        browser.press("Confirm this address")

        assert live.can_log_in(email)

    def test_the_keyboard_is_enough(self, live: Live, browser: Browser, email: str) -> None:
        browser.open(link_in(live.sign_up(email)))

        assert browser.tab().text == "Confirm this address"
        with browser.another_page():
            browser.type(Keys.ENTER)

        assert browser.heading == "Your account is active"

    def test_while_two_sign_ups_wait_the_page_asks_for_a_new_password(
        self, live: Live, browser: Browser, email: str
    ) -> None:
        live.sign_up(email, password="the-password-of-a-stranger")
        browser.open(link_in(live.sign_up(email)))

        browser.fill("new_password", "short")
        browser.press("Confirm this address")
        assert browser.alert == "This password must have at least 12 characters. Choose another."
        assert browser.focused.get_dom_attribute("id") == "new_password"
        browser.fill("new_password", NEW_PASSWORD)
        browser.press("Confirm this address")

        assert browser.heading == "Your account is active"
        assert live.can_log_in(email, NEW_PASSWORD)
        assert not live.can_log_in(email, PASSWORD)
        assert not live.can_log_in(email, "the-password-of-a-stranger")

    def test_a_page_that_was_opened_before_another_sign_up_asks_for_a_new_password(
        self, live: Live, browser: Browser, email: str
    ) -> None:
        browser.open(link_in(live.sign_up(email)))
        live.sign_up(email, password="the-password-of-a-stranger")

        browser.press("Confirm this address")
        assert browser.heading == "Confirm your e-mail address"
        assert browser.focused.get_dom_attribute("id") == "new_password"
        browser.fill("new_password", NEW_PASSWORD)
        browser.press("Confirm this address")

        assert browser.heading == "Your account is active"
        assert live.can_log_in(email, NEW_PASSWORD)


class TestPasswordReset:
    def test_the_link_leads_to_a_log_in_with_the_new_password(self, live: Live, browser: Browser, email: str) -> None:
        live.create_account(email)

        browser.open_email(live.ask_for_reset(email))
        browser.follow("Set a new password")
        assert browser.heading == "Set a new password"
        browser.fill("new_password", NEW_PASSWORD)
        browser.press("Set this password")

        assert browser.heading == "Your password is set"
        assert live.can_log_in(email, NEW_PASSWORD)
        assert not live.can_log_in(email, PASSWORD)

    def test_a_weak_password_is_refused_with_the_reason_and_the_link_stays_good(
        self, live: Live, browser: Browser, email: str
    ) -> None:
        live.create_account(email)
        browser.open(link_in(live.ask_for_reset(email)))

        for password, reason in [
            ("short", "must have at least 12 characters"),
            (email, "must not be the e-mail address"),
            ("password1234", "is one of the passwords that attackers try first"),
        ]:
            browser.fill("new_password", password)
            browser.press("Set this password")
            assert browser.alert == f"This password {reason}. Choose another."
            assert browser.driver.title == "Error: Set a new password"
            assert browser.focused.get_dom_attribute("id") == "new_password"
        browser.fill("new_password", NEW_PASSWORD)
        browser.press("Set this password")

        assert live.can_log_in(email, NEW_PASSWORD)

    def test_the_keyboard_is_enough(self, live: Live, browser: Browser, email: str) -> None:
        live.create_account(email)
        browser.open(link_in(live.ask_for_reset(email)))

        assert browser.tab().get_property("value") == email
        assert browser.tab().accessible_name == "New password"
        with browser.another_page():
            browser.type(NEW_PASSWORD, Keys.ENTER)

        assert browser.heading == "Your password is set"

    def test_password_managers_learn_whose_password_it_is(self, live: Live, browser: Browser, email: str) -> None:
        live.create_account(email)
        browser.open(link_in(live.ask_for_reset(email)))

        username, password = browser.driver.find_elements(By.CSS_SELECTOR, "form input:not([type=hidden])")
        assert username.get_dom_attribute("autocomplete") == "username"
        assert username.get_property("value") == email
        assert password.get_dom_attribute("autocomplete") == "new-password"


class TestInvitation:
    def test_the_link_leads_to_an_account_with_a_password_of_ones_own(
        self, live: Live, browser: Browser, email: str
    ) -> None:
        message = live.invite(email, name="Ana")

        browser.open_email(message)
        browser.follow("Accept the invitation")
        assert browser.heading == "Accept the invitation"
        browser.fill("new_password", "weak")
        browser.press("Accept the invitation")
        assert browser.alert == "This password must have at least 12 characters. Choose another."
        browser.fill("new_password", NEW_PASSWORD)
        browser.press("Accept the invitation")

        assert browser.heading == "Your account is ready"
        assert live.can_log_in(email, NEW_PASSWORD)


class TestEmailChange:
    def test_the_new_address_confirms_and_the_old_one_can_undo(self, live: Live, browser: Browser, email: str) -> None:
        live.create_account(email)
        new_email = f"new-{email}"

        browser.open_email(live.ask_for_email_change(email, new_email))
        browser.follow("Use this address")
        assert new_email in browser.driver.find_element(By.TAG_NAME, "main").text
        browser.press("Use this address")
        assert browser.heading == "Your address is changed"
        assert live.can_log_in(new_email)
        assert not live.can_log_in(email)

        browser.open_email(live.take_email(email, "Your e-mail address was changed"))
        browser.follow("Put this address back")
        assert email in browser.driver.find_element(By.TAG_NAME, "main").text
        browser.press("Put this address back")
        assert browser.heading == "Your address is back"
        assert live.can_log_in(email)
        assert not live.can_log_in(new_email)


@pytest.mark.parametrize(
    ("page", "next_step"),
    [
        ("activate", "ask for a new link where you signed up"),
        ("password-reset", "ask for a new link where you log in"),
        ("email-change", "log in with the old one and change it again"),
        ("invitation", "ask whoever invited you for a new one"),
        ("email-revert", "ask those who run this service for help"),
    ],
)
def test_a_link_that_does_not_work_says_what_to_do_next(
    live: Live, browser: Browser, page: str, next_step: str
) -> None:
    browser.open(str(live.client.base_url.join(f"/{page}?token=used")))

    assert browser.alert.startswith("This link is not valid")
    assert next_step in browser.driver.find_element(By.TAG_NAME, "main").text
