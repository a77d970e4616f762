"""`holdfast token`: makes a bearer token."""

from __future__ import annotations

import hashlib
import secrets

import click


@click.command(short_help="Make a bearer token for a subject.")
@click.argument("subject")
def token(subject: str) -> None:
    """Make a new token for SUBJECT. The token goes to standard output: give it to the caller,
    nobody else. What goes into the gateways' access file, its SHA-256, goes to standard error.

    \b
    Example:
      holdfast token billing > billing.token
    """
    made = secrets.token_urlsafe(32)
    click.echo(made)
    click.echo(
        f'[tokens]\n{_quoted(subject)} = ["{hashlib.sha256(made.encode()).hexdigest()}"]', err=True
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
