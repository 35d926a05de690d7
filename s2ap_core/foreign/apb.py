"""Write a result as AdversarialPruningBenchmark reads one: the dense state dict of its base network, and an entry."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.masks.masking import bake, density, masks
from s2ap_core.models import build
from s2ap_core.runs.checkpoints import Checkpoint

SUFFIXES = (".pt", ".pth", ".tar")

BASES = {"resnet18": "R18", "vgg16_bn": "V16"}
"""The networks of ours whose tensors are those of its base networks, and what its keys call them."""

DATA = {"cifar10": "CIFAR10", "svhn": "SVHN"}

KNOWN = {
    "hydra": "HYDRA_Sehwag2020Hydra",
    "harp": "HARP_Zhao2023Holistic",
    "rlth": "RST_Fu2021Drawing",
    "mad": "MAD_Lee2022Masking",
}
"""The first part of the key of a method that is in its taxonomy."""

FULL = {"classes": 10, "width": 64, "input_channels": 3}


def check_fits(checkpoint: Checkpoint) -> None:
    """Check that a network has the tensors of a base network of the benchmark.

    Raises:
        InputError: naming what differs.
    """
    described: Mapping[str, Any] = checkpoint.header.get("network") or {}
    name = described.get("name")
    if name not in BASES or described.get("options"):
        raise InputError(
            f"network {name}: the benchmark's base networks are {' and '.join(BASES)}; export a run of one"
        )
    if described.get("norm", "batch") != "batch":
        raise InputError(
            f"network {name} has network.norm = {described['norm']}, the benchmark's BatchNorm; export such a run"
        )
    for option, value in FULL.items():
        if (described.get(option) or value) != value:
            raise InputError(
                f"network {name} has {option} {described[option]}, the benchmark's {value}; export one like it"
            )
    if (described.get("input_size") or 32) < 32:
        raise InputError(f"network {name} is for images of {described['input_size']} pixels, the benchmark's for 32")
    if not masks(checkpoint.model):
        raise InputError("has no masks: export a result of the search or of the finetuning")


def base_network(checkpoint: Checkpoint) -> nn.Module:
    """Make the benchmark's base network, with the masked weights of the checkpoint, in eval mode.

    Normalisation layers without parameters, as RLTH's, get scales of 1 and shifts of 0.

    Raises:
        InputError: as :func:`check_fits`.
    """
    check_fits(checkpoint)
    base = build(checkpoint.header["network"]["name"])
    held = bake(checkpoint.model).state_dict()
    ones_and_zeros = {
        key: torch.full_like(tensor, float(key.endswith("weight")))
        for key, tensor in base.state_dict().items()
        if key not in held
    }
    base.load_state_dict({key: tensor.cpu() for key, tensor in (held | ones_and_zeros).items()}, strict=True)
    return base.eval()


def check_suffix(path: Path) -> None:
    """Raise InputError if the suffix is none of :data:`SUFFIXES`."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out {path}: the benchmark reads files of torch.save; give one of {', '.join(SUFFIXES)}")


def save_for_apb(path: Path, base: nn.Module) -> None:
    """Write ``{"state_dict": ...}`` of plain tensors, as ``torch.save`` does and the benchmark's loader reads it."""
    state: dict[str, Tensor] = {key: tensor.detach().clone() for key, tensor in base.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    write_file(path, buffer.getvalue())


def model_key(checkpoint: Checkpoint) -> str:
    """Compose the benchmark's key, such as ``HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90``.

    A search with a perturbation is no method of its taxonomy yet: its form gives the authors' part of the key.
    """
    header = checkpoint.header
    method, minimizer = str(header.get("method")), header.get("minimizer")
    structured = method.endswith("-channels")
    plain = method.removesuffix("-channels")
    perturbed = minimizer not in (None, "none")
    name = f"{str(minimizer).upper()}-{plain.upper()}_AUTHORYEARWORD" if perturbed else KNOWN.get(plain)
    data = DATA.get(str(header.get("dataset")), str(header.get("dataset")).upper())
    sparsity = round(100 * (1 - density(checkpoint.model)))
    kind = "S" if structured else "US"
    network = BASES[header["network"]["name"]]
    return f"{name or f'{plain.upper()}_AUTHORYEARWORD'}_{network}_{data}_{kind}_{sparsity}"


def entry(key: str, suffix: str, evaluation: Mapping[str, Any]) -> str:
    """Write the entry of the benchmark's form for one model, with what of it is known here.

    Args:
        evaluation: clean and robust accuracy of the network in [0, 1], attack, norm and eps; empty where not evaluated.
    """
    aa = evaluation.get("attack") == "autoattack" and evaluation.get("norm") == "Linf"
    aa = aa and evaluation.get("eps") == "8/255"
    clean = f"{100 * evaluation['clean_accuracy']:.2f}" if "clean_accuracy" in evaluation else "xx.xx"
    robust = f"{100 * evaluation['robust_accuracy']:.2f}" if aa else "xx.xx"
    place = json.dumps(["your_gdrive_link_id", suffix])
    return "\n".join(
        [
            f'_Model GDrive:_ "{key}" : {place}',
            f'_Distances GDrive:_ "{key}" : ["your_gdrive_link_id", ".pickle"]',
            "",
            f"_Clean Accuracy:_ {clean}",
            f"_Robust Accuracy (AA):_ {robust}",
            "_Robust Accuracy (HO-FMN):_ xx.xx",
            "",
            "Images in [0, 1], no normalization; loads strictly into the base network.",
            "",
        ]
    )
