"""What the layers of a network cost, measured on one image."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from s2ap_core.errors import InputError
from s2ap_core.masks.kinds import MASKABLE, TRANSPOSED, Layer
from s2ap_core.modes import train_mode, without_fused_attention


def measure_costs(model: nn.Module, trace: fx.GraphModule, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Run one black image through a traced network, whose nodes learn their shapes, and count what each module costs.

    Returns:
        Multiply-accumulates with the weights of each convolution, linear layer and attention, by module name; those
        that are not called are left out. An attention's output projection is a part of it.
    """
    costs: Counter[str] = Counter()

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        costs[name] += _products(module, inputs, named, output)

    counted = (*MASKABLE, nn.MultiheadAttention)
    handles = [
        module.register_forward_hook(partial(look, name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, counted)
    ]
    reference = next(model.parameters())
    image = torch.zeros(1, *image_shape, device=reference.device, dtype=reference.dtype)
    try:
        # The fused kernels take the weights of layers and do not call them.
        with torch.no_grad(), train_mode(model, False), without_fused_attention():
            ShapeProp(trace).propagate(image)
    finally:
        for handle in handles:
            handle.remove()
    return dict(costs)


def _products(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> int:
    if isinstance(module, nn.MultiheadAttention):
        given = dict(zip(("query", "key", "value"), inputs, strict=False)) | dict(named)
        entries = 2 * given["query"].numel() + given["key"].numel() + given["value"].numel()  # the output is as large
        return int(entries * module.embed_dim)
    weight = Layer("", module, "weight").weight
    mapped: Tensor = inputs[0] if isinstance(module, TRANSPOSED) else output  # what has the channels of dimension 0
    return mapped.numel() // weight.shape[0] * weight.numel()


def refuse_parameters_used_elsewhere(model: nn.Module, nodes: list[fx.Node]) -> None:
    """Raise InputError if a layer's parameter is used outside its own call, where no hook counts the cost."""
    targets = {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for name, layer in model.named_modules():
        if not isinstance(layer, MASKABLE):
            continue
        own = [p for n, p in layer.named_parameters() if n.startswith(("weight", "parametrizations.weight.original"))]
        read = any(target.startswith(f"{name}.") for target in targets)
        if read or any(owners[id(weight)] > 1 for weight in own):
            raise InputError(
                f"a parameter of {name} is used outside that layer, where FLOPs are not counted: "
                "channel pruning takes networks that call their layers and share no weights; give another"
            )
