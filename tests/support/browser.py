"""Chromium, and a running service, as people see them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal

import httpx
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.smtp_server import MailServer, link_in
from tests.support.steps import PASSWORD, token_of

Scheme = Literal["light", "dark"]

ADMIN = "admin@example.com"
PHONE_WIDTH = 375
WAIT_SECONDS = 10


class Browser:
    """Chromium, which runs no script of any page, and keeps what it complains about."""

    def __init__(self, driver: Chrome, folder: Path) -> None:
        self.driver = driver
        self._folder = folder

    @property
    def heading(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "h1").text

    @property
    def alert(self) -> str:
        """What a screen reader is told at once."""
        return self.driver.find_element(By.CSS_SELECTOR, "[role=alert]").text

    @property
    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def open(self, url: str) -> None:
        self.driver.get(url)

    def open_email(self, email: EmailMessage) -> None:
        part = email.get_body(("html",))
        assert part is not None
        self.show(part.get_content())

    def show(self, html: str) -> None:
        path = self._folder / "email.html"
        path.write_text(html, "utf-8")
        self.open(path.as_uri())

    def follow(self, link_text: str) -> None:
        with self.another_page():
            self.driver.find_element(By.LINK_TEXT, link_text).click()

    def fill(self, field_id: str, text: str) -> None:
        self.driver.find_element(By.ID, field_id).send_keys(text)

    def press(self, label: str) -> None:
        button = self.driver.find_element(By.TAG_NAME, "button")
        assert button.text == label
        with self.another_page():
            button.click()

    def type(self, *keys: str) -> None:
        """Give keys to whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab(self) -> WebElement:
        """Move the focus to the next control, where it must be seen."""
        self.type(Keys.TAB)
        assert self.focused.value_of_css_property("outline").endswith("solid 3px")
        return self.focused

    def run(self, script: str) -> Any:
        """Run a script of ours in the page, where its own would not run."""
        return self.driver.execute_script(script)

    def use_scheme(self, scheme: Scheme) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def use_width(self, width: int) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE_WIDTH}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def save_screenshot(self, name: str) -> None:
        assert self.driver.save_screenshot(self._folder / f"{name}.png")

    def take_complaints(self) -> list[str]:
        """What the console says, but for the statuses of our own refusals."""
        entries = self.driver.execute("getLog", {"type": "browser"})["value"]
        messages = [entry["message"] for entry in entries]
        return [message for message in messages if "responded with a status of 4" not in message]

    @contextmanager
    def another_page(self) -> Iterator[None]:
        """Wait until what is done here has brought one."""
        heading = self.driver.find_element(By.TAG_NAME, "h1")
        yield
        # Between two pages, chromedriver may answer with any error.
        wait = WebDriverWait(self.driver, WAIT_SECONDS, 0.02, ignored_exceptions=[WebDriverException])
        wait.until(lambda driver: driver.find_element(By.TAG_NAME, "h1") != heading)


@dataclass(frozen=True)
class Live:
    """A running service, seen from outside: its HTTP interface, and the emails that it sends."""

    client: httpx.Client
    mail_server: MailServer

    def sign_up(self, email: str, *, password: str = PASSWORD, name: str | None = None) -> EmailMessage:
        """The email with the link."""
        self._post("/auth/signup", email=email, password=password, name=name)
        return self.take_email(email, "Confirm your e-mail address")

    def create_account(self, email: str) -> None:
        self._post("/auth/activate", token=token_of(link_in(self.sign_up(email))))

    def can_log_in(self, email: str, password: str = PASSWORD) -> bool:
        return self.client.post("/auth/login", json={"email": email, "password": password}).is_success

    def ask_for_reset(self, email: str) -> EmailMessage:
        self._post("/auth/password-reset/request", email=email)
        return self.take_email(email, "Reset your password")

    def ask_for_email_change(self, email: str, new_email: str) -> EmailMessage:
        token = self._post("/auth/login", email=email, password=PASSWORD).json()["access_token"]
        bearer = {"Authorization": f"Bearer {token}"}
        self._post("/auth/email-change/request", bearer, new_email=new_email, current_password=PASSWORD)
        return self.take_email(new_email, "Confirm your new e-mail address")

    def invite(self, email: str, name: str | None = None) -> EmailMessage:
        token = self._post("/auth/login", email=ADMIN, password=PASSWORD).json()["access_token"]
        self._post("/api/users", {"Authorization": f"Bearer {token}"}, email=email, name=name)
        return self.take_email(email, "You are invited")

    def take_email(self, to: str, subject: str) -> EmailMessage:
        """Wait for the email; each is handed out once, the oldest first."""
        emails, deadline = self.mail_server.emails, time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            for email in emails:
                if (email["To"], email["Subject"]) == (to, subject):
                    emails.remove(email)
                    return email
            time.sleep(0.01)
        raise AssertionError(f"no email {subject!r} to {to}")

    def _post(self, path: str, headers: dict[str, str] | None = None, **body: str | None) -> httpx.Response:
        return self.client.post(path, json=body, headers=headers).raise_for_status()
