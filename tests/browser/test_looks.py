"""Whether every page and every email can be read: in light and dark, on a phone, and by a screen reader."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from selenium.webdriver.common.by import By

from src.email import EmailKind, Locale, MessageTemplates
from tests.support.browser import PHONE_WIDTH, Browser, Live, Scheme
from tests.support.smtp_server import link_in

pytestmark = pytest.mark.slow

LONG_NAME = "MariaAparecida" * 7
SCHEMES: tuple[Scheme, ...] = ("light", "dark")

# The texts whose contrast with what is behind them is below 4.5 : 1, and the fields whose edge is below 3 : 1 (WCAG
# 2.2, 1.4.3 and 1.4.11). Where nothing paints the ground, it is the browser's own.
FAINT = """
const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
const parse = color => { const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const over = ([r, g, b, a], ground) => [r, g, b].map((part, i) => part * a + ground[i] * (1 - a)).concat(1);
const ancestors = element => element ? [...ancestors(element.parentElement), element] : [];
const ground = element => ancestors(element).reduce(
  (below, each) => over(parse(getComputedStyle(each).backgroundColor), below), canvas);
const luminance = color => color.slice(0, 3).map(part => part / 255)
  .map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
  .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
const contrast = (color, behind) => {
  const [low, high] = [over(color, behind), behind].map(luminance).sort((a, b) => a - b);
  return (high + .05) / (low + .05);
};
const textColor = element => {
  const [r, g, b, a] = parse(getComputedStyle(element).color);
  return [r, g, b, ancestors(element).reduce((alpha, each) => alpha * getComputedStyle(each).opacity, a)];
};
const seen = [...document.body.querySelectorAll("*")].filter(element => element.checkVisibility());
const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
const texts = seen.filter(element => hasText(element) || element.value);
const fields = seen.filter(element => element.matches("input:not([type=hidden])"));
return {
  looked: texts.length,
  faint: [
    ...texts.filter(text => contrast(textColor(text), ground(text)) < 4.5),
    ...fields.filter(field => contrast(parse(getComputedStyle(field).borderTopColor), ground(field.parentElement)) < 3),
  ].map(element => element.outerHTML),
};
"""


def every_page(live: Live, browser: Browser, email: str) -> Iterator[str]:
    """Bring the browser to one page after the other."""
    new_email = f"{'long' * 10}-{email}"
    live.sign_up(email, name=LONG_NAME)
    browser.open(link_in(live.sign_up(email, name=LONG_NAME)))
    yield "activate-asks-password"
    browser.fill("new_password", "weak")
    browser.press("Confirm this address")
    yield "activate-weak-password"
    browser.open(link_in(live.sign_up(new_email, name=LONG_NAME)))
    yield "activate"
    browser.press("Confirm this address")
    yield "activated"

    email, new_email = new_email, f"new-{new_email}"
    browser.open(link_in(live.ask_for_email_change(email, new_email)))
    yield "email-change"
    browser.press("Use this address")
    yield "email-changed"
    browser.open(link_in(live.take_email(email, "Your e-mail address was changed")))
    yield "email-revert"
    browser.press("Put this address back")
    yield "email-reverted"

    browser.open(link_in(live.ask_for_reset(email)))
    yield "password-reset"
    browser.fill("new_password", "weak")
    browser.press("Set this password")
    yield "password-reset-weak"
    browser.fill("new_password", "another-long-password")
    browser.press("Set this password")
    yield "password-reset-done"

    browser.open(link_in(live.invite(f"invited-{email}", name=LONG_NAME)))
    yield "invitation"
    browser.fill("new_password", "weak")
    browser.press("Accept the invitation")
    yield "invitation-weak"
    browser.fill("new_password", "another-long-password")
    browser.press("Accept the invitation")
    yield "invitation-accepted"
    for page in ("activate", "password-reset", "email-change", "email-revert", "invitation"):
        browser.open(str(live.client.base_url.join(f"/{page}?token=wrong")))
        yield f"{page}-refused"


def test_every_page_reads_well_in_light_and_dark_and_on_a_phone(live: Live, browser: Browser, email: str) -> None:
    for name in every_page(live, browser, email):
        assert_reads_well(browser, name)


@pytest.mark.parametrize("kind", EmailKind)
@pytest.mark.parametrize("locale", ["en", "pt-BR"])
def test_every_email_reads_well_in_light_and_dark_and_on_a_phone(
    browser: Browser, kind: EmailKind, locale: Locale
) -> None:
    values = {
        "name": LONG_NAME,
        "when": "2026-11-24 11:04 UTC",
        "where": "2001:db8:85a3:8d3:1319:8a2e:370:7348",
        "new_email": f"{'long' * 15}@example.com",
        "left": "9",
        "browser": "Firefox",
        "url": f"https://accounts.example.com/{kind}?token={'x1Y-' * 11}",
    }
    email = MessageTemplates().render(kind, locale, id_=UUID(int=0), to="ana@example.com", values=values)

    browser.show(email.html)

    assert browser.heading == email.subject
    assert browser.driver.find_element(By.TAG_NAME, "html").get_dom_attribute("lang") == locale
    assert_reads_well(browser, f"{kind}-{locale}")


def assert_reads_well(browser: Browser, name: str) -> None:
    for width in (1024, PHONE_WIDTH):
        browser.use_width(width)
        assert browser.run("return document.documentElement.scrollWidth") <= width, f"{name} is wider than {width} px"
        for scheme in SCHEMES:
            browser.use_scheme(scheme)
            result = browser.run(FAINT)
            assert result["looked"] >= 2
            assert result["faint"] == [], f"{name} is hard to read in {scheme}"
            browser.save_screenshot(f"{name}-{scheme}-{width}")


def test_every_page_tells_a_screen_reader_what_it_is(live: Live, browser: Browser, email: str) -> None:
    for name in every_page(live, browser, email):
        page = browser.driver
        assert page.find_element(By.TAG_NAME, "html").get_dom_attribute("lang") == "en", name
        assert len(page.find_elements(By.TAG_NAME, "h1")) == 1, name
        assert page.title.removeprefix("Error: ") == browser.heading, name
        assert page.title.startswith("Error: ") == bool(page.find_elements(By.CSS_SELECTOR, "[role=alert]")), name
        for field in page.find_elements(By.CSS_SELECTOR, "input:not([type=hidden])"):
            assert field.accessible_name in ("Account", "Password", "New password"), name
        for described in page.find_elements(By.CSS_SELECTOR, "[aria-describedby]"):
            for id_ in (described.get_dom_attribute("aria-describedby") or "").split():
                assert page.find_element(By.ID, id_).text, name
