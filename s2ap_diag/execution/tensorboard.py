"""What ``metrics.csv`` gets, for TensorBoard: a folder for each stage, which TensorBoard calls a run.

A stage's file is written from ``metrics.csv`` when the stage begins or goes on, and each epoch's rows are appended once
``metrics.csv`` has them. So a run that is killed and resumed shows each epoch once, as the CSV does.
"""

import os
import time
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.files.atomic import write_file
from s2ap_core.files.writer import writes_files
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.loop import Callback, Loop

FOLDER = "tensorboard"

FILE = "events.out.tfevents.0.s2ap"
"""TensorBoard reads what is called so."""

Reading = tuple[int, int | str, str, float]
"""Epoch, iteration or "", metric, value."""


def check_installed() -> None:
    """Raise InputError if TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401  # an extra
    except ImportError as error:
        raise InputError(
            "tracking.tensorboard = true needs TensorBoard: pip install 's2ap-diag[tensorboard]', or leave it out"
        ) from error


class TensorBoard(Callback):
    """Write each row of ``metrics.csv`` as a scalar.

    A metric of an epoch stands at its epoch. What was read at an iteration is called ``iteration/METRIC`` and stands at
    the number of iterations since the stage began.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def on_stage(self, loop: Loop) -> None:
        if not writes_files():
            return
        own = [row for row in self.run.rows("metrics.csv") if row[0] == loop.stage]
        readings = [
            (int(epoch), int(iteration) if iteration else "", metric, float(value))
            for _, epoch, iteration, metric, value in own
        ]
        path = self._file(loop)
        lock.make_folder_of(path.parent)
        write_file(path, _encoded(readings, loop.iterations_per_epoch, version=True))

    def on_recorded(self, loop: Loop, rows: Sequence[tuple[int | str, str, float]]) -> None:
        if not writes_files():
            return
        path, readings = self._file(loop), [(loop.epoch, *row) for row in rows]
        lock.check_held(path)
        with path.open("ab") as file:
            file.write(_encoded(readings, loop.iterations_per_epoch))
            file.flush()
            os.fsync(file.fileno())

    def _file(self, loop: Loop) -> Path:
        return self.run.path / FOLDER / loop.stage / FILE


def _encoded(readings: Iterable[Reading], iterations_per_epoch: int, *, version: bool = False) -> bytes:
    """Encode readings as TensorBoard's records, behind the version that a file begins with."""
    # An extra, which only a run that asks for it needs.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    now, stream = time.time(), BytesIO()
    records = RecordWriter(stream)
    if version:
        records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for epoch, iteration, metric, value in readings:
        whole = iteration == ""
        step = epoch if whole else (epoch - 1) * iterations_per_epoch + int(iteration)
        tag = metric if whole else f"iteration/{metric}"
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])
        records.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
    return stream.getvalue()
