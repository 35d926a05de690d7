"""The same step many times over: on a GPU its kernels are recorded once and replayed."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

WORTHWHILE = 4
"""Steps from which a recording pays: of so many, two are launched and two replayed."""

_latest: dict[torch.device, torch.cuda.CUDAGraph | None] = {}
"""The recording made last: the next one works in the memory that it worked in. None where recording failed."""


def repeat(step: Callable[[Tensor], Tensor], state: Tensor, times: int) -> Tensor:
    """Compute ``step(... step(state))``, ``times`` over.

    A GPU's host takes longer to launch the kernels of a small network than the GPU takes to run them. So the first
    step is launched as it is, which fills caches, the second is recorded in a CUDA graph, and that is replayed.

    Args:
        step: launches the same kernels each time. Where it reads something back to the host, it cannot be recorded,
            and all steps are launched.
        state: a tensor of the shape that ``step`` returns.
    """
    if state.is_cuda and times >= WORTHWHILE and _latest.get(state.device, ...) is not None:
        state, times = step(state).clone(), times - 1
        graph = _record(step, state)
        if graph is not None:
            for _ in range(times):
                graph.replay()
            return state
    for _ in range(times):
        state = step(state)
    return state


def release() -> None:
    """Give back the memory of the recordings, and try again where one failed: another network or stage begins."""
    _latest.clear()


def _record(step: Callable[[Tensor], Tensor], state: Tensor) -> torch.cuda.CUDAGraph | None:
    """Record a step that writes its result over ``state``; None where it cannot be recorded."""
    graph, before = torch.cuda.CUDAGraph(), _latest.get(state.device)
    pool: Any = None if before is None else before.pool()
    with torch.cuda.device(state.device), torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        try:
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                state.copy_(step(state))
            finally:
                graph.capture_end()
        except RuntimeError as error:
            log.info("the attack's steps are not recorded, which would be faster: %s", error)
            _latest[state.device] = None
            # Torch's default generator still waits for the end of the recording, and would draw nothing before.
            drawing = torch.cuda.default_generators[torch.cuda.current_device()]
            drawing.graphsafe_set_state(drawing.clone_state())
            return None
    _latest[state.device] = graph
    return graph
