"""Layers that published networks name or make otherwise: the VGG-16 of MAD, Li20 and PwoA, and the last of RLTH."""

from collections.abc import Mapping

from torch import Tensor, nn

from s2ap_core.models.vgg import POOL, STAGES


def _features() -> dict[str, tuple[str, str]]:
    """Map each of our convolutions and normalisation layers to its names as MAD, and as PwoA number them."""
    parts: dict[str, tuple[str, str]] = {}
    index, stage, place = 0, 1, 0
    for multiple in STAGES:
        if multiple == POOL:
            index, stage, place = index + 1, stage + 1, 0
            continue
        for i in (0, 1):
            parts[f"features.{index + i}"] = (f"feature.{index + i}", f"layer{stage}.{place}.{i}")
        index, place = index + 3, place + 1
    return parts


def _parts(tool: str, layers: dict[str, str]) -> dict[str, str]:
    theirs = {names[tool == "PwoA"]: ours for ours, names in _features().items()}
    return theirs | layers


PARTS = {
    "MAD": _parts("MAD", {"classifier": "classifier"}),
    "Li20": _parts("Li20", {"classifier.0": "hidden.0", "classifier.1": "hidden.1", "classifier.3": "classifier"}),
    "PwoA": _parts("PwoA", {"layer6.0": "classifier.0", "layer7.0": "classifier.2", "layer8": "classifier.4"}),
}
"""Our name of each part of their networks; MAD's and Li20's are those of ``vgg16_linear``, PwoA's of ``vgg16_bn``."""

AGAIN = {"model.0.": "feature.", "model.3.": "classifier."}
"""Li20's network holds its parts twice, alone and in a sequence."""


def under_our_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Give the tensors of one of these networks the names that ours has for them, and say whose they are.

    Others come back as they are, with "".
    """
    once = {name: tensor for name, tensor in tensors.items() if not _held_twice(name, tensors)}
    modules = {name.rpartition(".")[0] for name in once}
    for tool, parts in PARTS.items():
        if modules == parts.keys():
            split = ((name.rpartition("."), tensor) for name, tensor in once.items())
            return {f"{parts[layer]}.{part}": tensor for (layer, _, part), tensor in split}, tool
    return dict(tensors), ""


def _held_twice(name: str, tensors: Mapping[str, Tensor]) -> bool:
    for sequence, alone in AGAIN.items():
        other = tensors.get(alone + name.removeprefix(sequence)) if name.startswith(sequence) else None
        if other is not None and other.shape == tensors[name].shape and bool((other == tensors[name]).all()):
            return True
    return False


def last_linear(model: nn.Module) -> str | None:
    """Find the last Linear layer, which gives the logits; None in a network that ends in something else."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return names[-1] if names else None


def with_linear_head(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn the 1x1 convolution without bias, in which RLTH's code ends its networks, into our Linear layer."""
    head, own = last_linear(model), model.state_dict()
    convolutions = (n for n in ("fc", head) if getattr(tensors.get(f"{n}.weight"), "shape", ())[2:] == (1, 1))
    theirs = next((n for n in convolutions if n == head or f"{n}.weight" not in own), None)
    if head is None or theirs is None:
        return dict(tensors)
    found = {f"{head}.bias": tensors[f"{theirs}.weight"].new_zeros(len(tensors[f"{theirs}.weight"]))}
    for name, tensor in tensors.items():
        of_head = name.startswith(f"{theirs}.")
        ours = f"{head}{name.removeprefix(theirs)}" if of_head else name
        found[ours] = tensor.flatten(1) if of_head and tensor.ndim > 1 else tensor
    return found
