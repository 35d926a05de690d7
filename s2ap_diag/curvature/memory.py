"""What a computation allocates."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class BytesAllocated(TorchDispatchMode):
    """Count the bytes of all tensors that the operations in the block make: no less than what autograd keeps of them.

    >>> import torch
    >>> with BytesAllocated() as allocated:
    ...     y = (torch.ones(3) * 2).view(3, 1)
    >>> allocated.bytes
    24
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; what it returns of its arguments, or as a view of them, is not new."""
        del types
        out = func(*args, **(kwargs or {}))
        if not any(value.alias_info for value in func._schema.returns):
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out
