"""`holdfast token`: makes a bearer token."""

from __future__ import annotations

import hashlib
import secrets

import click


@click.command(short_help="Make a bearer token for a subject.")
@click.argument("subject")
def token(subject: str) -> None:
    """Make a new bearer token for SUBJECT.

    The token goes to standard output. Give it only to the caller that it is for. Standard error
    gets the lines for the gateways' access file (--access): they hold the token's SHA-256, not the
    token.

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
