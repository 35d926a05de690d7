"""HARP for transformers: a learned keep rate for each unit of a layer that packs queries, keys and values."""

from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.masks.layers import maskable_layers
from s2ap_core.methods.harp import Harp


class HarpUnits(Harp):
    """HARP with one rate for queries and keys, which meet in a product, and one for values; one for any other layer.

    Queries and keys keep the same fraction, each of its own scores: a row of the one is worth what the row of the
    other that it is multiplied with is. The module that packs them stays as it is.
    """

    def check(self, model: nn.Module) -> None:
        super().check(model)
        self.packed(model)

    def packed(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self._heads(model), (0, 0, 1))

    def _heads(self, model: nn.Module) -> dict[str, int]:
        """Count the heads of each packed layer that learns its rates.

        Raises:
            InputError: if there is none, so that this would be HARP; if queries and keys are apart, whose rates no
                file ties.
        """
        said, own = f"method.name = {self.settings.name}", self.own_keeps(model)
        learned = {name: layer for name, layer in self.layers(model).items() if name not in own}
        for name, layer in learned.items():
            if layer.parameter in ("q_proj_weight", "k_proj_weight"):
                raise InputError(
                    f"{said} gives queries and keys one rate, but {name} is a layer of its own, as keys or values are "
                    "of another width; set method.name = harp, or skip it"
                )
        heads = {name: count for name, count in packed_heads(model).items() if name in learned}
        if not heads:
            raise InputError(
                f"{said} is harp here: no layer that learns its rate packs queries, keys and values; set method.name = "
                "harp"
            )
        return heads


class HarpHeads(HarpUnits):
    """HARP with these two rates for each attention head."""

    def packed(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        found, heads_of = {}, self._heads(model)
        if set(heads_of.values()) == {1}:
            raise InputError(
                "method.name = harp-heads is harp-units here: each attention has one head; set method.name = "
                "harp-units, or take a network of several (of network.name = vit from network.width = 128 on)"
            )
        for name, heads in heads_of.items():
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
