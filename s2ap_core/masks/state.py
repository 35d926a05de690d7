"""State dicts of masked networks under plain names."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.masks.layers import MASK, RAW_WEIGHT

_PLAIN = {
    RAW_WEIGHT: "weight",
    f"{MASK}.scores": "scores",
    f"{MASK}.rate": "rate",
    f"{MASK}.nominal_keep": "keep",
    f"{MASK}.group": "group",
    f"{MASK}.unit": "unit",
    f"{MASK}.mask_bits": "mask",
}


_PARAMETRIZED = re.compile(rf"({'|'.join(map(re.escape, _PLAIN))})$")


def _plain_name(key: str) -> str:
    return _PARAMETRIZED.sub(lambda match: _PLAIN[match[1]], key)


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Collect the state dict under plain names: ``conv1.weight``, ``.scores``, ``.rate``, ``.mask``.

    Masks with a keep rate of their own also have ``.keep``, channel masks ``.group`` besides, those of units ``.unit``.
    Tensors share the model's memory, but for tied rates, which are one tensor in the model and one for each layer here:
    files hold no shared tensors.
    """
    state = {_plain_name(key): tensor for key, tensor in model.state_dict().items()}
    return {name: tensor.clone() if name.endswith(".rate") else tensor for name, tensor in state.items()}


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
