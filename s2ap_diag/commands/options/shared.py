"""Options that several commands have."""

import functools
import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input
from s2ap_core.files.writer import writes_files
from s2ap_diag.commands.options import completion
from s2ap_diag.execution.console import show_warnings
from s2ap_diag.execution.exits import check_standard_output

if TYPE_CHECKING:  # both import more than --help can wait for
    from s2ap_diag.output.destinations import Output
    from s2ap_diag.reading.source import Source


class GivenPath(click.Path):
    """A file or folder that a user names: no empty name, as an unset variable leaves, no pipe and no device."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("an empty name; name a file or folder", param, ctx)
        path = Path(super().convert(value, param, ctx))  # type: ignore[arg-type]
        check_input(path)
        return path


class OutputFolder(GivenPath):
    """A folder that a command writes into, made where it is missing: before anything is measured, no file is there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Path = super().convert(value, param, ctx)
        there = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
        if os.path.isfile(there):
            raise InputError(f"{path}: {there} is a file, where a folder is to be; name another folder")
        return path


EXISTING = GivenPath(path_type=Path)
FOLDER = OutputFolder(path_type=Path)


class Number(click.FloatRange):
    """A number in a range, in which NaN is not, though no comparison says so."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as click does, and refuse NaN."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class OutputFile(click.Path):
    """A file that a command writes; :func:`check_outputs` checks it before the command begins."""

    def __init__(self, kind: type[Path] | type[str] = Path, *, picture: bool = False) -> None:
        super().__init__(path_type=kind)
        self.picture = picture


def check_outputs() -> None:
    """Check every file that the command at hand is to write, beside what it reads.

    Raises:
        InputError: as :func:`s2ap_diag.output.destinations.check_destinations`, or if results are to go to standard
            output, and that is closed.
    """
    from s2ap_diag.output.destinations import check_destinations  # slow, and --help needs none of it

    context = click.get_current_context()
    outputs: dict[str, Path] = {}
    inputs: list[Path] = []
    named: list[str] = []
    pictures: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if isinstance(parameter.type, OutputFile):
            if value == "-":
                check_standard_output(parameter.opts[0])
            elif value is not None:
                outputs[parameter.opts[0]] = Path(value)
                pictures += parameter.opts[:1] * parameter.type.picture
        elif isinstance(parameter.type, click.Path) or isinstance(parameter, click.Argument):
            inputs += map(Path, value if isinstance(value, tuple) else filter(None, [value]))
        if not isinstance(parameter.type, click.Path):
            named += [one for one in (value if isinstance(value, tuple) else [value]) if isinstance(one, str)]
    check_destinations(outputs, inputs, pictures, named)


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _set_up(ctx: click.Context, param: click.Parameter, quiet: bool) -> bool:
    del ctx, param
    quiet = quiet or not writes_files()  # of several processes, the first speaks for all
    show_warnings(quiet=quiet)
    return quiet


quiet_option = click.option(
    "--quiet", is_flag=True, callback=_set_up, expose_value=True, help="No table, progress or warnings."
)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
seed_option = click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Random seed.")
scale_option = click.option(
    "--scale", type=click.Choice(["digits"]), help="Every run narrow and short, on scikit-learn's digits."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of every run.",
    shell_complete=completion.settings,
)  # fmt: skip


def _output(json: str | None, csv: Path | None, quiet: bool, wide: bool, plot: Path | None = None) -> "Output":
    from s2ap_diag.output.destinations import Output  # slow, and --help needs none of it

    check_outputs()
    return Output(json, csv, plot, quiet, wide) if writes_files() else Output(None, None, None, quiet=True)


def _source(keep: float | None, network: str | None, dataset: str | None, root: Path | None) -> "Source":
    from s2ap_diag.reading.source import Source  # slow, and --help needs none of it

    return Source(keep, network, dataset, root)


def _bundle(name: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """Add options that reach the command as one argument ``name``, made by ``make`` of those that it names."""
    keys = inspect.signature(make).parameters

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        def bundled(**given: Any) -> Any:
            own = {key: given.pop(key) for key in keys if key in given}
            return function(**{name: make(**own)}, **given)

        call: Callable[..., Any] = functools.wraps(function)(bundled)
        for option in reversed(options):
            call = option(call)
        return call

    return apply


wide_option = click.option("--wide", is_flag=True, help="Show all columns of a table, however wide.")
_table_options = (
    click.option("--json", type=OutputFile(str), help="Write the results as JSON; - is standard output."),
    click.option("--csv", type=OutputFile(), help="Write the results as CSV."),
    wide_option,
    quiet_option,
)
table_options = _bundle("output", _output, *_table_options)
_plot_option = click.option("--plot", type=OutputFile(picture=True), help="Draw the results (.png, .pdf or .svg).")
output_options = _bundle("output", _output, *_table_options, _plot_option)
source_options = _bundle(
    "source",
    _source,
    click.option("--keep", type=float, help="Fraction kept, where the file does not say it."),
    click.option("--network", help="The network, where the file does not say it, or FILE.py:FACTORY."),
    click.option(
        "--dataset",
        help="The data set, where the file does not say it; or FILE.npz, a folder of class folders, FILE.py:FACTORY.",
    ),
    click.option("--root", type=EXISTING, help="Folder of the data set's published files."),
)
