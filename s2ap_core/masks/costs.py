"""What the layers of a network cost, measured on one image."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from s2ap_core.errors import InputError
from s2ap_core.masks.kinds import MASKABLE, TRANSPOSED, Layer, input_of, parameters_of
from s2ap_core.masks.layers import every_layer
from s2ap_core.modes import train_mode, without_fused_attention


@contextmanager
def counted_products(model: nn.Module) -> Iterator[Counter[str]]:
    """Count, in the block's forward passes, the multiply-accumulates with each layer's weight, by layer name."""
    products: Counter[str] = Counter()

    def look(path: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        products.update(_products(path, module, inputs, named, output))

    counted = (*MASKABLE, nn.MultiheadAttention)
    handles = [
        module.register_forward_hook(partial(look, path), with_kwargs=True)
        for path, module in model.named_modules()
        if isinstance(module, counted)
    ]
    try:
        with without_fused_attention():  # the fused kernels take the weights of layers and do not call them
            yield products
    finally:
        for handle in handles:
            handle.remove()


def measure_costs(model: nn.Module, trace: fx.GraphModule, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Run one black image through a traced network, whose nodes learn their shapes, and count what each layer costs.

    Returns:
        Multiply-accumulates with the weight of each layer that is called, by its name.

    Raises:
        InputError: if the network cannot compute with such an image.
    """
    reference = next(model.parameters())
    image = torch.zeros(1, *image_shape, device=reference.device, dtype=reference.dtype)
    try:
        # What is written to standard error is the traceback of what ShapeProp raises.
        muted = redirect_stderr(io.StringIO())
        with torch.no_grad(), train_mode(model, False), counted_products(model) as products, muted:
            ShapeProp(trace).propagate(image)
    except RuntimeError as error:
        said = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"the network does not take images of shape {list(image_shape)} ({said}); give others"
        ) from error
    return dict(products)


def _products(
    path: str, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any
) -> dict[str, int]:
    if isinstance(module, nn.MultiheadAttention):
        given = dict(zip(("query", "key", "value"), inputs, strict=False)) | dict(named)
        query, key, value = (given[name].numel() * module.embed_dim for name in ("query", "key", "value"))
        apart = {"q_proj_weight": query, "k_proj_weight": key, "v_proj_weight": value}
        own = {p: apart.get(p, query + key + value) for p in parameters_of(module)}
        # Its output projection is not called; what it reads is as large as the queries.
        out = Layer(f"{path}.out_proj".removeprefix("."), module.out_proj, "weight").name
        return {Layer(path, module, parameter).name: count for parameter, count in own.items()} | {out: query}
    layer = Layer(path, module, "weight")
    # What has the channels of dimension 0.
    mapped: Tensor = input_of(inputs, named) if isinstance(module, TRANSPOSED) else output
    return {layer.name: mapped.numel() // layer.weight.shape[0] * layer.weight.numel()}


def refuse_parameters_used_elsewhere(model: nn.Module, nodes: list[fx.Node]) -> None:
    """Raise InputError if a layer's parameter is used outside its own call, where no hook counts the cost."""
    targets = [str(node.target) for node in nodes if node.op in ("call_module", "get_attr")]
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for layer in every_layer(model):
        raw = (layer.parameter, f"parametrizations.{layer.parameter}.original")
        own = [p for name, p in layer.module.named_parameters() if name.startswith(raw)]
        # Also of an attention's output projection, which its own call does not call.
        read = any(target.startswith(f"{layer.path}.") for target in targets)
        if read or any(owners[id(weight)] > 1 for weight in own):
            raise InputError(
                f"a parameter of {layer.path} is used outside that layer, where FLOPs are not counted: "
                "channel pruning takes networks that call their layers and share no weights; give another"
            )
