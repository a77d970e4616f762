"""The `holdfast` command line. The module of a command is imported when the command is used.

Commands of the node, the gateway and the cluster are entry points, because the SDK imports none of
these packages. Commands that run servers need packages that a client does not have: those of the
extra `server`. Without these packages, such a command says so.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import click

_COMMANDS = {
    "dev": "holdfast.cli.dev:dev",
    "call": "holdfast.cli.calls:call",
    "where": "holdfast.cli.cluster:where",
    "status": "holdfast.cli.cluster:status",
    "explain": "holdfast.cli.explain:explain",
    "top": "holdfast.cli.top:top",
    "objects": "holdfast.cli.objects:objects",
    "drain": "holdfast.cli.cluster:drain",
    "reset-shard": "holdfast.cli.cluster:reset_shard",
    "deadletters": "holdfast.cli.dead_letters:deadletters",
    "alarms": "holdfast.cli.dead_letters:alarms",
    "pause": "holdfast.cli.dead_letters:pause",
    "resume": "holdfast.cli.dead_letters:resume",
    "bench": "holdfast.cli.bench:bench",
    "verify": "holdfast.verify.command:verify",
    "token": "holdfast.cli.tokens:token",
}


class _Commands(click.Group):
    """Imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *(entry.name for entry in _entries())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            if place := _COMMANDS.get(cmd_name):
                module, _, name = place.partition(":")
                command: click.Command = getattr(import_module(module), name)
                return command
            for entry in _entries():
                if entry.name == cmd_name:
                    loaded: click.Command = entry.load()
                    return loaded
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0].startswith("holdfast"):
                raise
            return _lacking(cmd_name, error.name)
        return None


def _entries() -> list[EntryPoint]:
    return list(entry_points(group="holdfast.commands"))


def _lacking(name: str, module: str) -> click.Command:
    """Return a stand-in for a command whose packages are not installed."""

    def tell(**_: object) -> None:
        raise click.ClickException(
            f"`holdfast {name}` needs the package {module}, which is not installed: install"
            " Holdfast with its extra `server`, as in: pip install 'path/to/holdfast[server]'"
        )

    return click.Command(
        name,
        callback=tell,
        short_help="Not installed: it needs the extra `server`.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="holdfast")
def main() -> None:
    """Run and operate Holdfast: durable objects on your own machines.

    `holdfast dev` runs a cluster on this machine. `holdfast node` and `holdfast gateway` run the
    processes of a real cluster. Most other commands ask a gateway: name it with --gateway or
    HOLDFAST_GATEWAY.

    \b
    Example:
      holdfast dev shop/app.py
    """
