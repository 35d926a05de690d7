"""The options of ``s2ap-diag data``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, FOLDER, table_options


@click.group(name="data", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Download published data sets, and see what of them is there."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command(name="fetch", short_help="Download data set NAME into a folder.")
@click.argument("name")
@click.option("--root", type=FOLDER, required=True, help="Folder for all data sets; made if it is not there.")
@table_options
def fetch(**options: Any) -> None:
    """Download data set NAME into a folder, checksum and all; goes on where an earlier download broke off."""
    from s2ap_diag.commands.data import fetch_command  # slow, and --help needs none of it

    fetch_command(**options)


@command.command(name="check", short_help="Say what of data set NAME, or of `all`, is there.")
@click.argument("name")
@click.option("--root", type=EXISTING, help="Folder that holds the data sets; digits needs none.")
@table_options
def check(**options: Any) -> None:
    """Say what of data set NAME, or of each with `all`, is there and what is missing, with counts.

    Exit status 2 if the data set is incomplete; with `all`, if one of those that are there is.
    """
    from s2ap_diag.commands.data import check_command  # slow, and --help needs none of it

    check_command(**options)
