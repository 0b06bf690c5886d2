"""`python -m src outbox`: what operators see of the mails, and do about them."""

from typing import Annotated
from uuid import UUID

import typer

from src.cli.output import AsJson, fail, in_database, print_json
from src.services.outbox import list_unsent, retry_dead_letters

app = typer.Typer(help="The mails that wait to be sent.", no_args_is_help=True)

# Not the content: it holds where somebody was, and what they are called.
_SHOWN = ("id", "status", "kind", "attempts", "due_at", "to_email", "last_error")


@app.command("list")
def list_mails(
    *, limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100, as_json: AsJson = False
) -> None:
    """Show the mails that wait, and the dead letters, the oldest first."""
    mails = in_database(lambda database: list_unsent(database, limit=limit))
    if as_json:
        print_json([{name: getattr(mail, name) for name in _SHOWN} for mail in mails])
        return
    for mail in mails:
        typer.echo(
            f"{mail.id}  {mail.status:6}  {mail.kind:18} attempts {mail.attempts:2}  "
            f"due {mail.due_at:%Y-%m-%d %H:%M:%S}  {mail.to_email}  {mail.last_error or ''}"
        )


@app.command("retry")
def retry_mails(
    mail_id: Annotated[UUID | None, typer.Argument(help="The id that `outbox list` shows; all, if left out.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Queue a dead letter again, or all of them."""
    count = in_database(lambda database: retry_dead_letters(database, mail_id))
    if mail_id and not count:
        fail(f"There is no dead letter {mail_id}: see `python -m src outbox list`.")
    if as_json:
        print_json({"queued": count})
        return
    typer.echo(f"Queued {count} again.")
