"""Randomness as a function of (seed, stage, epoch, iteration): nothing depends on how far a generator ran."""

import zlib

import numpy as np
import torch


def derive_seed(seed: int, *parts: str | int) -> int:
    """Derive a 63-bit seed that is a fixed function of ``seed`` and of names and counters such as the epoch."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device | str, seed: int, *parts: str | int) -> torch.Generator:
    """Make a torch generator on ``device`` that starts from :func:`derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *parts))
