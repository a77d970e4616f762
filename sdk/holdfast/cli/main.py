"""The `holdfast` command line. Commands of the node and the gateway are found as entry points: the
SDK imports neither."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from holdfast.cli.bench import bench
from holdfast.cli.calls import call, drain, reset_shard, status, where
from holdfast.cli.dead_letters import alarms, deadletters, pause, resume
from holdfast.cli.dev import dev
from holdfast.cli.objects import explain, objects, top
from holdfast.client.tokens import token
from holdfast.verify.command import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="holdfast")
def main() -> None:
    """Holdfast: durable objects on your own machines."""


_COMMANDS = (
    dev,
    call,
    where,
    status,
    explain,
    top,
    objects,
    drain,
    reset_shard,
    deadletters,
    alarms,
    pause,
    resume,
    bench,
    verify,
    token,
)
for _command in _COMMANDS:
    main.add_command(_command)
for _entry in entry_points(group="holdfast.commands"):
    main.add_command(_entry.load(), _entry.name)
