"""How an email becomes a subject, a text and an HTML part.

The words are in `templates/<locale>/<kind>.jinja`, one file each. A template is written once: its building blocks (`p`,
`facts`, `button`) come out as plain text or as HTML, depending on the part that is being made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from markupsafe import Markup

from src.core.kinds import EmailKind

Locale = Literal["en", "pt-BR"]

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Message:
    """An email, ready to be sent. `id` stays the same when it is sent again, so that readers can tell."""

    id: UUID
    to: str
    subject: str
    text: str
    html: str


class MessageTemplates:
    """The words, from a deployment's own folder where it has a file, from ours where it has not."""

    def __init__(self, override: Path | None = None) -> None:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # needed only where emails are sent

        loader = FileSystemLoader([*([override] if override else []), TEMPLATES])
        self._html = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        self._html.globals |= {"layout": "layout.html", "p": _html_p, "facts": _html_facts, "button": _html_button}
        # Text is no HTML: "O'Brien" must not arrive as "O&#39;Brien".
        self._text = Environment(loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701
        self._text.globals |= {"layout": "layout.txt", "p": _text_p, "facts": _text_facts, "button": _text_button}

    def render(self, kind: EmailKind, locale: Locale, *, id_: UUID, to: str, values: Mapping[str, Any]) -> Message:
        """Raises Jinja's `UndefinedError` for a value that the template needs and is not given."""
        name = f"{locale}/{kind}.jinja"
        text = self._text.get_template(name)
        subject = "".join(text.blocks["subject"](text.new_context(dict(values))))
        return Message(
            id=id_,
            to=to,
            subject=" ".join(subject.split()),
            text=text.render(values).strip() + "\n",
            html=self._html.get_template(name).render(values, locale=locale, subject=subject),
        )


def _html_p(text: str) -> Markup:
    return Markup('<p style="margin:0 0 16px">{}</p>').format(text)


def _html_facts(*facts: tuple[str, str]) -> Markup:
    row = Markup(
        '<tr style="vertical-align:top"><td style="padding:2px 16px 2px 0;opacity:.7;white-space:nowrap">{}</td>'
        '<td style="padding:2px 0;word-break:break-word">{}</td></tr>'
    )
    rows = Markup("").join(row.format(*fact) for fact in facts)
    return Markup('<table role="presentation" style="margin:0 0 16px;border-collapse:collapse">{}</table>').format(rows)


def _html_button(label: str, url: str) -> Markup:
    return Markup(
        '<p style="margin:0 0 16px"><a href="{url}" style="display:inline-block;padding:12px 20px;border-radius:6px;'
        'background:#1d4ed8;color:#ffffff;font-weight:600;text-decoration:none">{label}</a></p>'
        '<p style="margin:0 0 16px;font-size:13px;opacity:.8;word-break:break-all">{url}</p>'
    ).format(url=url, label=label)


def _text_p(text: str) -> str:
    return f"{text}\n"


def _text_facts(*facts: tuple[str, str]) -> str:
    return "".join(f"  {name}: {value}\n" for name, value in facts)


def _text_button(label: str, url: str) -> str:
    return f"{label}:\n{url}\n"
