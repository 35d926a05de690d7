"""The options of ``s2ap-diag run``."""

from typing import Any

import click

from s2ap_diag.commands.options import completion
from s2ap_diag.commands.options.shared import FOLDER, device_option, quiet_option


@click.command(name="run")
@click.argument("config", required=False, shell_complete=completion.presets)
@click.option(
    "--list",
    "list_presets",
    is_flag=True,
    help="List the presets; with CONFIG those that match it: part of a name, a pattern with * or ?, or table9.",
)
@click.option(
    "--scale",
    type=click.Choice(["digits"]),
    help="Run CONFIG's method and network, narrow and with few epochs, on scikit-learn's digits.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, e.g. method.keep=0.05.",
    shell_complete=completion.settings,
)
@click.option("--out", type=FOLDER, help="The run directory; default runs/CONFIG.")
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped.")
@click.option(
    "--force", is_flag=True, help="With --resume: go on although config, images or code changed; it is written down."
)
@click.option(
    "--keep-checkpoints",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the checkpoints of the search's last N epochs besides the selected one; default all. Masks stay.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Overrides the config's seed.")
@click.option("--nproc", type=click.IntRange(min=1), help="Share the work among so many processes of this machine.")
@device_option
@quiet_option
def command(**options: Any) -> None:
    """Run CONFIG, a TOML file or a preset's name, through all its stages."""
    from s2ap_diag.commands.run import run_command  # slow, and --help needs none of it

    run_command(**options)
