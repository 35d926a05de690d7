"""The state from which an interrupted stage goes on, bit for bit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.masks.state import load_plain_state_dict, plain_state_dict
from s2ap_core.training.loop import Loop, Selection


def save_state(path: Path, loop: Loop, selection: Selection, header: Mapping[str, Any], metrics_bytes: int) -> None:
    """Write what a stage goes on from: network, optimizer, schedule, radius, carried z, method, selection, callbacks.

    Args:
        metrics_bytes: length of ``metrics.csv`` with this epoch's rows, which a resume must find.
    """
    tensors = {f"model.{name}": tensor for name, tensor in plain_state_dict(loop.model).items()}
    for index, state in loop.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    if (perturbation := loop.perturbation) is not None:
        carried = perturbation.z if perturbation.carry else None
        tensors |= {f"z.{index}": z for index, z in enumerate(carried or ())}
        tensors |= {f"radius.{name}": value for name, value in perturbation.radius.state_dict().items()}
    for index, callback in enumerate(loop.callbacks):
        tensors |= {f"callback.{index}.{name}": value for name, value in callback.state_dict().items()}
    described = {
        **header,
        "metrics_bytes": metrics_bytes,
        "selection": [selection.best, selection.epoch],
        "schedule": loop.schedule.state_dict(),
        "method": loop.method.state_dict() if loop.method is not None else {},
    }
    save_tensors(path, tensors, described)


def load_state(path: Path, loop: Loop, selection: Selection) -> None:
    """Restore a stage, in place, as it was when :func:`save_state` was called.

    Raises:
        InputError: if the file is damaged, or not a state of this stage.
    """
    tensors, header = load_tensors(path)
    with _named(path):
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "z": {}, "radius": {}, "callback": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        load_plain_state_dict(loop.model, groups["model"])
        _load_optimizer(loop, groups["optimizer"])
        loop.epoch = int(header["epoch"])
        _load_schedule(loop, header["schedule"])
        if (perturbation := loop.perturb(loop.epoch)) is not None:
            perturbation.radius.load_state_dict(groups["radius"])
            if groups["z"]:
                carried = [groups["z"][str(index)] for index in range(len(groups["z"]))]
                layers = zip(carried, perturbation.layers, strict=True)
                perturbation.z = [z.to(layer.tensor.device) for z, layer in layers]
        selection.best, selection.epoch = header["selection"]
        if loop.method is not None:
            loop.method.load_state_dict(header["method"])
        for index, callback in enumerate(loop.callbacks):
            own = {n.partition(".")[2]: t for n, t in groups["callback"].items() if n.startswith(f"{index}.")}
            callback.load_state_dict(own)


def _load_optimizer(loop: Loop, entries: Mapping[str, Tensor]) -> None:
    optimizer = loop.optimizer.state_dict()
    trained = [parameter for group in loop.optimizer.param_groups for parameter in group["params"]]
    for name, tensor in entries.items():
        index, _, entry = name.partition(".")
        if entry != "step" and tensor.shape != trained[int(index)].shape:
            raise ValueError(f"{name} is of another shape than its parameter")
        optimizer["state"].setdefault(int(index), {})[entry] = tensor
    loop.optimizer.load_state_dict(optimizer)


def _load_schedule(loop: Loop, state: Mapping[str, Any]) -> None:
    done = loop.epoch * (loop.iterations_per_epoch if loop.settings.lr_step == "iteration" else 1)
    if state.keys() != loop.schedule.state_dict().keys() or state["last_epoch"] != done:
        raise ValueError("its schedule is not that of this epoch")
    loop.schedule.load_state_dict(dict(state))
    for group, lr in zip(loop.optimizer.param_groups, loop.schedule.get_last_lr(), strict=True):
        group["lr"] = lr


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in the error where its content is not a stage's state although its checksum is right."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: not a state of this run ({error}); remove it to begin the stage anew") from error
