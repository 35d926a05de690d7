"""State dicts of masked networks under plain names."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.masks.layers import MASK, RAW

_PLAIN = {
    **{kind: kind for kind in ("scores", "rate", "group", "unit")},
    "nominal_keep": "keep",
    "mask_bits": "mask",
}
"""What files call the tensors of a mask."""

KINDS = tuple(_PLAIN.values())
"""The kinds of tensors that a mask can have in a file."""

_WEIGHT = r"(\w*)weight"
_OF_RAW = re.compile(rf"{RAW.replace('.', '[.]').format(_WEIGHT)}$")
_OF_MASK = re.compile(rf"{MASK.replace('.', '[.]').format(_WEIGHT)}[.]({'|'.join(_PLAIN)})$")
_SELECTING = re.compile(rf"(^|[._])({'|'.join(KINDS)})$")


def _plain_name(key: str) -> str:
    return _OF_MASK.sub(lambda match: match[1] + _PLAIN[match[2]], _OF_RAW.sub(r"\1weight", key))


def selects(name: str) -> bool:
    """Return whether a tensor of this plain name says what a mask keeps, as ``conv1.scores`` does."""
    return bool(_SELECTING.search(name))


def mask_tensors(mask: nn.Module) -> set[str]:
    """Name, as files do, the kinds of tensors that a mask has, such as ``scores``."""
    return {_PLAIN[name] for name in mask.state_dict()}


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Collect the state dict under plain names: ``conv1.weight``, ``.scores``, ``.rate``, ``.mask``.

    Masks with a keep rate of their own also have ``.keep``, channel masks ``.group`` besides, those of units ``.unit``.
    Tensors share the model's memory, but for tied rates, which are one tensor in the model and one for each layer here:
    files hold no shared tensors.
    """
    state = {_plain_name(key): tensor for key, tensor in model.state_dict().items()}
    return {name: tensor.clone() if name.endswith("rate") else tensor for name, tensor in state.items()}


def load_plain_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`plain_state_dict` gave into a model that is masked in the same way.

    Raises:
        InputError: naming the first tensors that are missing, unknown or of another shape.
    """
    own = model.state_dict()
    names = {_plain_name(key): key for key in own}
    missing, unknown = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
    shapes = [n for n in names.keys() & state.keys() if own[names[n]].shape != state[n].shape]
    for what, bad in (
        ("lacks", missing),
        ("has unknown", unknown),
        ("has another shape for", sorted(shapes)),
    ):
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise InputError(f"not a checkpoint of this network: it {what} {bad[0]}{more}")
    model.load_state_dict({names[name]: tensor for name, tensor in state.items()})
