"""Several processes for one command on this machine, started as torchrun would."""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(arguments: Sequence[str], processes: int, name: str) -> None:
    """Run ``s2ap-diag ARGUMENTS`` in so many processes of one group, and wait for them.

    Raises:
        SystemExit: 2 where a process found input that cannot be used, which it has told; 1 for any other
            that ended, 130 for an interruption.
    """
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    logging.disable(logging.ERROR)  # torchrun's report of an error that we tell in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "s2ap_diag", *arguments)
    except ChildFailedError as error:
        if any(failure.exitcode == 2 for failure in error.failures.values()):
            sys.exit(2)
        click.echo(f"error: {_first_to_end(error.failures, processes)}; the run continues with --resume", err=True)
        sys.exit(1)
    except SignalException as error:
        what = "terminated" if error.sigval == signal.SIGTERM else "interrupted"
        click.echo(f"{what}; a run continues with --resume", err=True)
        sys.exit(128 + error.sigval)


def _first_to_end(failures: Mapping[int, ProcessFailure], processes: int) -> str:
    """Name the process to blame: one that was killed. The others miss it and end by themselves within a second."""
    rank, failure = min(failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
    how = f"with status {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"by {signal.Signals(-failure.exitcode).name}"
    return f"process {rank} of {processes} ended {how}"


def arguments(context: click.Context, without: str) -> list[str]:
    """Compose the command line that gave this context its parameters, command first, ``without`` one option."""
    words = [str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        if name == without or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value: Any = context.params.get(name, True)
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[-1])
        else:
            for one in value if parameter.multiple else (value,):
                words += [parameter.opts[-1], str(one)]
    return words
