"""`python -m src outbox`: what operators see of the emails, and do about them."""

from typing import Annotated
from uuid import UUID

import typer

from src.cli.output import AsJson, fail, in_database, print_json
from src.services.outbox import list_unsent, retry_dead_letters

app = typer.Typer(help="The emails that wait to be sent.", no_args_is_help=True)

# Not the content: it holds where somebody was, and what they are called.
_SHOWN = ("id", "status", "kind", "attempts", "due_at", "to_email", "last_error")


@app.command("list")
def list_emails(
    *, limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100, as_json: AsJson = False
) -> None:
    """Show the emails that wait, and the dead letters, the oldest first."""
    emails = in_database(lambda database: list_unsent(database, limit=limit))
    if as_json:
        print_json([{name: getattr(email, name) for name in _SHOWN} for email in emails])
        return
    for email in emails:
        typer.echo(
            f"{email.id}  {email.status:7}  {email.kind:18} attempts {email.attempts:2}  "
            f"due {email.due_at:%Y-%m-%d %H:%M:%S}  {email.to_email}  {email.last_error or ''}"
        )


@app.command("retry")
def retry_emails(
    email_id: Annotated[UUID | None, typer.Argument(help="The id that `outbox list` shows; all, if left out.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Queue a dead letter again, or all of them."""
    count = in_database(lambda database: retry_dead_letters(database, email_id))
    if email_id and not count:
        fail(f"There is no dead letter {email_id}: see `python -m src outbox list`.")
    if as_json:
        print_json({"queued": count})
        return
    typer.echo(f"Queued {count} again.")
