"""Every message, in every language: complete, readable, and safe to show."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from jinja2 import Environment, meta

from src.email import EmailKind, EmailUtils, Locale, Message, MessageTemplates
from src.email.messages import TEMPLATES

LOCALES: tuple[Locale, ...] = ("en", "pt-BR")
VALUES: dict[str, Any] = {
    "name": "Ana",
    "when": "2026-03-01 12:00 UTC",
    "where": "192.0.2.7",
    "new_email": "new@example.com",
    "left": "9",
    "browser": "Firefox",
    "url": "https://auth.example.com/activate?token=abc_-123",
}
# What each message is about; what it shows beyond this, it shows by mistake.
SHOWN = {kind: {"when", "where"} for kind in EmailKind}
SHOWN[EmailKind.ACTIVATION] |= {"url"}
SHOWN[EmailKind.PASSWORD_RESET] |= {"url"}
SHOWN[EmailKind.EMAIL_CHANGE] |= {"url"}
SHOWN[EmailKind.EMAIL_CHANGED] |= {"url", "new_email"}
SHOWN[EmailKind.ACCOUNT_REMOVED] = {"when"}
SHOWN[EmailKind.INVITATION] = {"when", "name", "url"}
SHOWN[EmailKind.RECOVERY_CODE_USED] |= {"left"}
SHOWN[EmailKind.NEW_LOG_IN] |= {"browser"}
# What chooses between its words, where it is given.
CHOOSING = {kind: {"asked_by"} for kind in (EmailKind.PASSWORD_RESET, EmailKind.SECOND_FACTOR_REMOVED)}


def render(kind: EmailKind, locale: Locale = "en", templates: MessageTemplates | None = None, **values: Any) -> Message:
    return (templates or MessageTemplates()).render(
        kind, locale, id_=uuid4(), to="ana@example.com", values=VALUES | values
    )


def variables(kind: EmailKind, locale: Locale) -> set[str]:
    source = (TEMPLATES / locale / f"{kind}.jinja").read_text()
    return meta.find_undeclared_variables(Environment(autoescape=True).parse(source)) - {
        "layout",
        "p",
        "facts",
        "button",
    }


def compose(message: Message, sender: str = "accounts@example.com") -> EmailMessage:
    """The email, as who receives its bytes reads it."""
    email = EmailUtils(host="127.0.0.1", port=25, sender=sender).compose(message)
    return message_from_bytes(email.as_bytes(), policy=policy.default)


def part(email: EmailMessage, kind: str) -> str:
    body = email.get_body((kind,))
    assert body is not None
    return str(body.get_content())


class TestLanguages:
    @pytest.mark.parametrize("locale", LOCALES)
    def test_each_language_has_a_file_for_each_message_and_no_other(self, locale: Locale) -> None:
        assert {path.name for path in (TEMPLATES / locale).iterdir()} == {f"{kind}.jinja" for kind in EmailKind}

    def test_each_folder_of_words_is_a_language_that_can_be_chosen(self) -> None:
        assert {path.name for path in TEMPLATES.iterdir() if path.is_dir()} == set(LOCALES)

    @pytest.mark.parametrize("locale", LOCALES)
    @pytest.mark.parametrize("kind", EmailKind)
    def test_it_shows_what_it_is_about_and_nothing_else(self, kind: EmailKind, locale: Locale) -> None:
        assert variables(kind, locale) == SHOWN[kind] | CHOOSING.get(kind, set())

    @pytest.mark.parametrize("locale", LOCALES)
    @pytest.mark.parametrize("kind", EmailKind)
    def test_both_parts_tell_the_same(self, kind: EmailKind, locale: Locale) -> None:
        message = render(kind, locale)

        assert message.subject
        for variable in SHOWN[kind]:
            assert VALUES[variable] in message.text
            assert VALUES[variable] in message.html
        assert f'<html lang="{locale}">' in message.html
        assert f"<title>{message.subject}</title>" in message.html

    @pytest.mark.parametrize("kind", EmailKind)
    def test_no_sentence_was_left_untranslated(self, kind: EmailKind) -> None:
        english, portuguese = (render(kind, locale) for locale in LOCALES)

        assert english.subject != portuguese.subject
        sentences = {line for line in english.text.splitlines() if line.endswith(".")}
        assert not sentences & set(portuguese.text.splitlines())

    @pytest.mark.parametrize("locale", LOCALES)
    def test_what_is_not_known_is_said_in_words(self, locale: Locale) -> None:
        for kind in (EmailKind.ACTIVATION, EmailKind.INVITATION):
            message = render(kind, locale, name=None, where=None)

            assert "None" not in message.text + message.html

    @pytest.mark.parametrize(
        ("locale", "sentence"),
        [("en", "An administrator asked you to"), ("pt-BR", "Um administrador pediu que você")],
    )
    def test_a_reset_that_an_administrator_asked_for_says_so_and_not_from_where(
        self, locale: Locale, sentence: str
    ) -> None:
        message = render(EmailKind.PASSWORD_RESET, locale, where=None, asked_by="administrator")

        for part_ in (message.text, message.html):
            assert sentence in part_
            assert VALUES["url"] in part_
            assert VALUES["when"] in part_
        assert "unknown" not in message.text
        assert "desconhecido" not in message.text

    @pytest.mark.parametrize("locale", LOCALES)
    @pytest.mark.parametrize("kind", EmailKind)
    def test_nothing_is_fetched_by_opening_it(self, kind: EmailKind, locale: Locale) -> None:
        html = render(kind, locale).html

        for fetches in ("<img", "<link", "<script", "@import", "url("):
            assert fetches not in html


class TestEscaping:
    @pytest.mark.parametrize("name", ["O'Brien", "Ana & Bob", "<b>", '"Ana"', "Łukasz 🦊"])
    def test_the_text_shows_a_name_as_it_is_written(self, name: str) -> None:
        assert f"Name: {name}\n" in render(EmailKind.INVITATION, name=name).text

    def test_the_html_shows_a_name_and_never_runs_it(self) -> None:
        html = render(EmailKind.INVITATION, name="<b onload=x>Ana</b>").html

        assert "<b onload" not in html
        assert "&lt;b onload=x&gt;Ana&lt;/b&gt;" in html

    @pytest.mark.parametrize("locale", LOCALES)
    @pytest.mark.parametrize("kind", EmailKind)
    def test_nothing_that_is_shown_can_break_out_of_the_html(self, kind: EmailKind, locale: Locale) -> None:
        values: dict[str, Any] = {variable: f"{variable}\"'<i>" for variable in SHOWN[kind]}

        html = render(kind, locale, **values).html

        assert "<i>" not in html
        assert html.count("&lt;i&gt;") >= len(SHOWN[kind])
        assert "url&#34;&#39;" in html or "url" not in SHOWN[kind]

    def test_words_that_look_like_a_template_stay_words(self) -> None:
        assert "{{ url }}{% raw %}" in render(EmailKind.INVITATION, name="{{ url }}{% raw %}").text


class TestHeaders:
    def test_a_mail_says_who_when_and_that_no_person_wrote_it(self) -> None:
        email = compose(render(EmailKind.ACTIVATION), "Accounts <accounts@example.com>")

        assert email["From"].addresses[0].display_name == "Accounts"
        assert email["From"].addresses[0].addr_spec == "accounts@example.com"
        assert email["To"] == "ana@example.com"
        assert email["Date"].datetime.tzinfo is not None
        assert email["Auto-Submitted"] == "auto-generated"
        assert email["MIME-Version"] == "1.0"
        assert [part.get_content_type() for part in email.iter_parts()] == ["text/plain", "text/html"]

    def test_each_header_stands_once(self) -> None:
        names = compose(render(EmailKind.ACTIVATION)).keys()

        assert sorted(names) == sorted(set(names))

    def test_the_message_id_is_that_of_the_message_however_often_it_is_sent(self) -> None:
        message, other = render(EmailKind.ACTIVATION), render(EmailKind.ACTIVATION)

        ids = [compose(each, "Accounts <accounts@example.com>")["Message-ID"] for each in (message, message, other)]

        assert ids == [f"<{message.id}@example.com>", f"<{message.id}@example.com>", f"<{other.id}@example.com>"]

    @pytest.mark.parametrize("line_break", ["\r\n", "\n", "\r"])
    @pytest.mark.parametrize("rest", ["Bcc: evil@example.com", ""])
    def test_a_line_break_in_an_address_or_a_subject_is_refused(self, line_break: str, rest: str) -> None:
        for field in ("to", "subject"):
            values = {"to": "ana@example.com", "subject": "Hello"}
            values[field] += line_break + rest
            message = Message(id=uuid4(), text="text", html="html", **values)

            with pytest.raises(ValueError, match="linefeed"):
                EmailUtils(host="127.0.0.1", port=25, sender="accounts@example.com").compose(message)

    def test_a_line_break_in_a_name_adds_no_header(self) -> None:
        message = render(EmailKind.INVITATION, name="Ana\r\nBcc: evil@example.com\r\n\r\nbody")

        email = compose(message)

        assert "Bcc" not in email
        assert email.get_all("To") == ["ana@example.com"]

    def test_a_subject_of_several_lines_becomes_one(self, tmp_path: Path) -> None:
        override(
            tmp_path, "en/activation.jinja", "{% extends layout %}{% block subject %}One\n  {{ name }}{% endblock %}"
        )

        message = render(EmailKind.ACTIVATION, templates=MessageTemplates(tmp_path), name="Two\r\nBcc: x@example.com")

        assert message.subject == "One Two Bcc: x@example.com"
        assert "Bcc" not in compose(message)

    def test_every_script_arrives(self) -> None:
        message = render(EmailKind.INVITATION, "pt-BR", name="Łukasz Ağaoğlu 李 🦊")

        email = compose(message, "Serviço de contas <contas@example.com>")

        assert email["Subject"] == "Você recebeu um convite"
        assert email["From"].addresses[0].display_name == "Serviço de contas"
        for kind in ("plain", "html"):
            assert "Łukasz Ağaoğlu 李 🦊" in part(email, kind)
            assert VALUES["url"] in part(email, kind)


def override(folder: Path, name: str, words: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(words)


class TestOverrides:
    def test_a_deployments_folder_replaces_what_it_has_and_the_rest_is_ours(self, tmp_path: Path) -> None:
        override(
            tmp_path,
            "en/activation.jinja",
            "{% extends layout %}{% block subject %}Welcome to Acme{% endblock %}"
            '{% block body %}{{ p("Hello " ~ (name or "you")) }}{{ button("Go", url) }}{% endblock %}',
        )
        templates = MessageTemplates(tmp_path)

        message = render(EmailKind.ACTIVATION, templates=templates, name="<Ana>")

        assert (message.subject, message.text) == ("Welcome to Acme", f"Hello <Ana>\nGo:\n{VALUES['url']}\n")
        assert "Hello &lt;Ana&gt;" in message.html
        assert render(EmailKind.ACTIVATION, "pt-BR", templates).subject == "Confirme seu endereço de e-mail"
        assert render(EmailKind.PASSWORD_RESET, templates=templates).subject == "Reset your password"

    def test_one_that_does_not_know_who_asked_is_rendered_all_the_same(self, tmp_path: Path) -> None:
        ours = (TEMPLATES / "en/password_changed.jinja").read_text()
        override(tmp_path, "en/password_reset.jinja", ours)

        message = render(
            EmailKind.PASSWORD_RESET, templates=MessageTemplates(tmp_path), where=None, asked_by="administrator"
        )

        assert "From: unknown\n" in message.text

    def test_a_template_of_ones_own_is_escaped_too(self, tmp_path: Path) -> None:
        override(
            tmp_path,
            "en/activation.jinja",
            "{% extends layout %}{% block subject %}Hi{% endblock %}{% block body %}{{ name }}{% endblock %}",
        )

        message = render(EmailKind.ACTIVATION, templates=MessageTemplates(tmp_path), name="<b>O'Brien</b>")

        assert message.text == "<b>O'Brien</b>\n"
        assert "&lt;b&gt;O&#39;Brien&lt;/b&gt;" in message.html

    def test_a_layout_of_ones_own_dresses_our_words(self, tmp_path: Path) -> None:
        override(tmp_path, "layout.html", "<html>Acme{% block body %}{% endblock %}</html>")

        message = render(EmailKind.PASSWORD_RESET, templates=MessageTemplates(tmp_path))

        assert message.html.startswith("<html>Acme")
        assert "Set a new password" in message.html
        assert "Acme" not in message.text


def test_the_same_message_has_the_same_words_again() -> None:
    id_ = UUID(int=1)

    first, second = (
        MessageTemplates().render(EmailKind.EMAIL_CHANGED, "en", id_=id_, to="ana@example.com", values=VALUES)
        for _ in range(2)
    )

    assert first == second
