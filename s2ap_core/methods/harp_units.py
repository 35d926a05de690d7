"""HARP for transformers: a learned keep rate for each unit of a layer that packs queries, keys and values."""

from torch import nn

from s2ap_core.masks.layers import maskable_layers
from s2ap_core.methods.harp import Harp


class HarpUnits(Harp):
    """HARP with one rate for queries and keys, which meet in a product, and one for values; one for any other layer.

    Queries and keys keep the same fraction, each of its own scores: a row of the one is worth what the row of the
    other that it is multiplied with is. The module that packs them stays as it is.
    """

    def packed(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(packed_heads(model), (0, 0, 1))


class HarpHeads(Harp):
    """HARP with these two rates for each attention head."""

    def packed(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        found = {}
        for name, heads in packed_heads(model).items():
            queries, values = range(heads), range(heads, 2 * heads)
            found[name] = (*queries, *queries, *values)
        return found


def packed_heads(model: nn.Module) -> dict[str, int]:
    """Count the heads of each layer whose rows are those of queries, then keys, then values, head by head.

    torch's attention has one where keys and values are as wide as queries. A module of one's own says so by ``packed``,
    the layer's name within the module, and ``heads``.
    """
    of_torch = {
        name: layer.module.num_heads
        for name, layer in maskable_layers(model).items()
        if isinstance(layer.module, nn.MultiheadAttention) and layer.parameter == "in_proj_weight"
    }
    own = {
        f"{path}.{module.packed}".removeprefix("."): int(module.heads)
        for path, module in model.named_modules()
        if isinstance(getattr(module, "packed", None), str)
    }
    return of_torch | own
