"""`python -m src`."""

from src.cli import app

app(prog_name="python -m src")
