"""A real browser, a service in a process of its own, and a mail server between the two.

All run once for these tests, so each test signs up with an address of its own. SQLite alone: these are about pages.
Screenshots stay in pytest's folders: `pytest tests/browser --basetemp=shots`, then `shots/*/*.png`.
"""

import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.support.browser import ADMIN, WAIT_SECONDS, Browser, Live
from tests.support.processes import find_program, run_command, run_service
from tests.support.smtp_server import MailServer
from tests.support.steps import PASSWORD

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # its own needs rights that a container does not give; it only ever sees our pages
    "--disable-dev-shm-usage",  # a container's is too small for it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = find_program("chromium", "chromium-browser", "google-chrome")
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With both paths given, Selenium looks for nothing to download.
    service = ChromeService(find_program("chromedriver", package="chromium-driver"), log_output=subprocess.DEVNULL)
    driver = Chrome(options, service)
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Chrome, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path)
    browser.open("about:blank")
    browser.use_scheme("light")
    browser.use_width(1024)
    yield browser
    assert browser.take_complaints() == []


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("service")
    with MailServer() as mail_server:
        environment = {
            "DATABASE_URL": f"sqlite:///{folder}/users.db",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(mail_server.port),
            "SMTP_TLS": "none",
            "SMTP_FROM": "accounts@example.com",
        }
        with run_service(folder, **environment) as running:
            running.wait_until_ready()
            run_command("create-admin", ADMIN, "--password-stdin", stdin=PASSWORD, **environment)
            with httpx.Client(base_url=running.url, timeout=WAIT_SECONDS) as client:
                yield Live(client, mail_server)


_numbers = count(1)


@pytest.fixture
def email() -> str:
    """An address that no other test has."""
    return f"ana{next(_numbers)}@example.com"
