"""Clean and robust accuracy, image by image, with the health of the attack."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import AttackNorm, EvaluationSettings
from s2ap_core.data import Batch, Dataset
from s2ap_core.distributed.group import gather
from s2ap_core.distributed.share import own_items
from s2ap_core.errors import InputError
from s2ap_core.files.arrays import load_arrays, save_arrays
from s2ap_core.masks.masking import bake
from s2ap_core.modes import gpu_arithmetic, train_mode
from s2ap_core.seeds import derive_seed, generator
from s2ap_core.training.attacks import AUTOATTACK, autoattack, pgd
from s2ap_core.training.folding import folded
from s2ap_core.training.norms import uniform_start

COLUMNS = ("index", "label", "clean", "robust", "noise", "zero_gradient")


@dataclass(frozen=True)
class Attack:
    """What an evaluation attacks with: a name of :class:`EvaluationSettings`, norm and radius."""

    name: str
    norm: AttackNorm
    eps: Fraction

    @classmethod
    def asked(cls, settings: EvaluationSettings, norm: AttackNorm, eps: Fraction) -> "Attack":
        """Return what settings ask for: of the training's norm and eps, where they have none of their own."""
        if settings.attack == "none":
            return cls("none", "Linf", Fraction(0))
        return cls(settings.attack, settings.norm or norm, eps if settings.eps is None else settings.eps)


@dataclass(frozen=True)
class Evaluation:
    """Correctness of each evaluated image; all arrays are [n].

    Attributes:
        index, label: position in the test split, and class.
        clean, robust: correct on the image, and under the attack.
        noise: correct on the image plus uniform noise of the attack's radius.
        zero_gradient: whether the loss has no gradient in the image; gradient attacks cannot succeed there.
        about: what the numbers belong to: attack, norm, eps, seed, checkpoint, the data set, and its options that
            choose images.
    """

    index: np.ndarray
    label: np.ndarray
    clean: np.ndarray
    robust: np.ndarray
    noise: np.ndarray
    zero_gradient: np.ndarray
    about: dict[str, Any]

    @property
    def images(self) -> tuple[Any, ...]:
        """What tells the images from those of another evaluation: data set, options, positions."""
        options = self.about.get("options", {})
        return self.about.get("dataset"), tuple(sorted(options.items())), tuple(self.index.tolist())

    def summary(self) -> dict[str, Any]:
        """Give accuracies in [0, 1] with their 95 % Wilson intervals, the attack's health, and what it was.

        Without an attack there is the clean accuracy alone.
        """
        clean = {
            **self.about,
            "n": len(self.label),
            "clean_accuracy": float(self.clean.mean()),
            "clean_interval": wilson(int(self.clean.sum()), len(self.clean)),
        }
        if self.about["attack"] == "none":
            return clean
        return clean | {
            "robust_accuracy": float(self.robust.mean()),
            "robust_interval": wilson(int(self.robust.sum()), len(self.robust)),
            "noise_accuracy": float(self.noise.mean()),
            "zero_gradient": float(self.zero_gradient.mean()),
        }

    def warnings(self) -> list[str]:
        """Name suspicious combinations, each with a remedy."""
        texts = []
        clean, robust, noise = self.clean.mean(), self.robust.mean(), self.noise.mean()
        if self.zero_gradient.mean() > 0.1:
            texts.append(
                f"{self.zero_gradient.mean():.0%} of the images have a zero input gradient: the robust "
                "accuracy may be an artefact; trust it only under autoattack, whose Square attack needs no gradient"
            )
        if robust > noise:
            texts.append(
                f"random noise ({noise:.1%}) does more harm than the attack ({robust:.1%}): it is too weak, "
                "or the network normalises twice; check both"
            )
        if self.about["attack"] != "none" and len(self.label) < 100:
            low, high = wilson(len(self.label) // 2, len(self.label))
            within = f"an accuracy is known to within {50 * (high - low):.0f} points"
            texts.append(f"only {len(self.label)} images: {within}; raise evaluation.n, or --n")
        if clean < 1.5 / max(int(self.label.max()) + 1, 2):
            texts.append(f"clean accuracy {clean:.1%} is near chance: the network has collapsed, or data are wrong")
        return texts


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Compute the 95 % Wilson score interval of a proportion."""
    z = 1.959963984540054
    p, centre = correct / n, (correct + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(p * (1 - p) * n + z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


LEAST_CLASSES = 4
"""Of AutoAttack: the targeted difference-of-logits ratio takes the third and the fourth largest logit."""


def check_attack(settings: EvaluationSettings, classes: int) -> None:
    """Check that an attack can be made on data of so many classes.

    Raises:
        InputError: if it cannot.
    """
    if settings.attack in ("autoattack", "apgd") and classes < LEAST_CLASSES:
        raise InputError(
            f"attack {settings.attack}: its targeted members compare four classes, and the data have {classes}: "
            "choose evaluation.attack = pgd-50, or --attack pgd-50"
        )


def evaluate(
    model: nn.Module,
    data: Dataset,
    settings: EvaluationSettings,
    *,
    eps: Fraction,
    norm: AttackNorm = "Linf",
    seed: int = 0,
    about: dict[str, Any] | None = None,
    file: Path | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate on the test split; with ``file``, saved after each batch and continued where it stopped.

    Several processes take turns at whole batches, so that they attack as one process would. All of them get the
    result; the file is saved after each round.

    Args:
        model: masked or plain; evaluated in eval mode on baked weights, and left as it is.
        eps, norm: the attack's radius and norm, unless the settings have their own.
        seed: the attack's.
        about: what is evaluated, such as the checkpoint's name and checksum. A file about something else, or
            about other images, is refused.
        on_batch: called with the number of images done and their total.

    Raises:
        InputError: as :func:`check_attack`, if ``file`` is of another evaluation, or an image lies outside [0, 1].
    """
    check_attack(settings, data.classes)
    attack = Attack.asked(settings, norm, eps)
    described = {
        **(about or {}),
        "images": data.checksum("test"),
        "attack": attack.name,
        "norm": attack.norm,
        "eps": str(attack.eps),
        "seed": seed,
    }
    plain = bake(model).eval()
    total = min(settings.n or data.count("test"), data.count("test"))
    parts = _load(file, described, total) if file is not None and file.exists() else {c: [] for c in COLUMNS}
    done = sum(map(len, parts["label"]))
    if done:
        on_batch(done, total)
    if done < total:
        # Always the first batch, in every process and after every interruption, so that all attack one network.
        plain = folded(plain, next(data.batches("test", settings.batch_size, limit=settings.batch_size)).x)

    own = _own_batches(data, settings.batch_size, done, total)
    while sum(map(len, parts["label"])) < total:
        batch = next(own, None)  # None where the last round has no batch for this process
        with gpu_arithmetic(tf32=False):
            evaluated = None if batch is None else _evaluate_batch(plain, batch, attack, seed, settings.batch_size)
        for columns in filter(None, gather(evaluated)):
            for column, values in zip(COLUMNS, columns, strict=True):
                parts[column].append(values)
        if file is not None:
            _save(file, parts, described)
        on_batch(sum(map(len, parts["label"])), total)
    return Evaluation(**{column: np.concatenate(values) for column, values in parts.items()}, about=described)


def _own_batches(data: Dataset, size: int, done: int, total: int) -> Iterator[Batch]:
    """Read this process's batches of the test split, without the images that are already evaluated.

    Raises:
        InputError: if an image lies outside [0, 1].
    """

    def unknown(batches: Sequence[Tensor]) -> Sequence[Tensor]:
        # Where the file was made with another batch size, some images of a batch may be evaluated already.
        return own_items([new for positions in batches if len(new := positions[positions >= done])])

    for batch in data.batches("test", size, limit=total, part=unknown):
        if batch.x.min() < 0 or batch.x.max() > 1:
            raise InputError(f"data set {data.name}: images outside [0, 1]; attacks need the raw range")
        yield batch


def _evaluate_batch(model: nn.Module, batch: Batch, attack: Attack, seed: int, at_once: int) -> tuple[np.ndarray, ...]:
    """Evaluate a batch, under a seed of its first image; one array for each of :data:`COLUMNS`."""
    batch_seed = derive_seed(seed, "evaluate", int(batch.index[0])) % 2**31
    outcomes = _outcomes(model, batch.x, batch.y, attack, batch_seed, at_once)
    return tuple(values.cpu().numpy() for values in (batch.index, batch.y, *outcomes))


def _outcomes(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int, at_once: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attack images; return which are correct as they are, under attack and under noise, and have no gradient.

    A pass takes ``at_once`` rows, or as many as there are images if these are more.
    """
    if attack.name == "none":
        with torch.no_grad():
            clean = model(x).argmax(1) == y
        return clean, clean, clean, torch.zeros_like(clean)
    eps = float(attack.eps)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)
    noise_source = generator(x.device, seed, "noise")
    with torch.no_grad():
        clean = logits.argmax(1) == y
        noise = model(random_start(x, eps, attack.norm, noise_source)).argmax(1) == y
    if eps == 0:
        return clean, clean, noise, gradient.flatten(1).abs().amax(1) == 0
    match attack.name:
        case "autoattack" | "apgd":
            members = AUTOATTACK if attack.name == "autoattack" else AUTOATTACK[:2]
            robust = autoattack(model, x, y, eps=eps, norm=attack.norm, attacks=members, seed=seed, at_once=at_once)
        case "pgd-50":
            robust = _pgd_50(model, x, y, attack, seed)
    return clean, robust & clean, noise, gradient.flatten(1).abs().amax(1) == 0


def random_start(x: Tensor, eps: float, norm: AttackNorm, noise_source: torch.Generator) -> Tensor:
    """Add noise of the attack's size to ``x``, clipped to [0, 1]: uniform in the l-inf ball, on the L2 or L1 sphere."""
    if norm == "Linf":
        return uniform_start(x, eps, noise_source)
    noise = torch.randn(x.shape, generator=noise_source, device=x.device, dtype=x.dtype).flatten(1)
    length = noise.norm(dim=1, p=2 if norm == "L2" else 1, keepdim=True)
    moved: Tensor = x + (eps * noise / length).view_as(x)
    return moved.clamp(0, 1)


PGD_STEP: dict[AttackNorm, float] = {"Linf": 2.5, "L2": 8.0, "L1": 8.0}
"""Length of a step of ``pgd-50``, in 50ths of eps; on L2's and L1's balls longer steps come closer to Auto-PGD."""


def _pgd_50(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int) -> Tensor:
    """Take a quick look: 50 steps of :data:`PGD_STEP` on the cross-entropy, from a uniform start."""
    eps = float(attack.eps)
    start = uniform_start(x, eps, generator(x.device, seed, "pgd-50"), attack.norm)

    def cross_entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="sum")

    x_adv = pgd(
        model, x, cross_entropy, start=start, eps=eps, step=PGD_STEP[attack.norm] * eps / 50, steps=50, norm=attack.norm
    )
    with torch.no_grad(), train_mode(model, False):
        predicted: Tensor = model(x_adv).argmax(1)
    return predicted == y


def _save(file: Path, parts: dict[str, list[np.ndarray]], about: dict[str, Any]) -> None:
    columns = {column: np.concatenate(values) for column, values in parts.items()}
    save_arrays(file, {"about": np.array(json.dumps(about)), **columns})


CHECKSUMS = {"checkpoint": "from another checkpoint", "images": "on other images"}
"""What a saved evaluation knows by its checksum alone, and how to say that it is another."""


def _load(file: Path, about: dict[str, Any], total: int) -> dict[str, list[np.ndarray]]:
    earlier = load_evaluation(file)
    if earlier.about != about:
        differing = next(k for k in {**about, **earlier.about} if about.get(k) != earlier.about.get(k))
        changed = CHECKSUMS.get(differing)
        what = f"with {differing} = {earlier.about.get(differing)}, now {about.get(differing)}"
        raise InputError(f"{file}: evaluated {changed or what}; move the file away to evaluate anew")
    return {column: [getattr(earlier, column)[:total]] for column in COLUMNS}


def load_evaluation(file: Path) -> Evaluation:
    """Load an evaluation that was saved, complete or not.

    Raises:
        InputError: if the file is missing or damaged.
    """
    try:
        return _from_arrays(load_arrays(file))
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file; run `s2ap-diag evaluate` first") from error
    except (ValueError, KeyError, RecursionError) as error:  # the last of JSON that is nested too deeply
        raise InputError(f"{file}: not an evaluation of ours, or damaged; remove it and evaluate again") from error


def _from_arrays(arrays: dict[str, np.ndarray]) -> Evaluation:
    """Take what :func:`_save` wrote; ValueError or KeyError if it is anything else."""
    about = json.loads(str(arrays["about"]))
    columns = {column: arrays[column] for column in COLUMNS}
    n = columns["index"].size
    kinds = {"index": "iu", "label": "iu"}
    if not isinstance(about, dict) or "attack" not in about:
        raise ValueError("does not say what it is about")
    if any(array.shape != (n,) or array.dtype.kind not in kinds.get(c, "b") for c, array in columns.items()):
        raise ValueError("columns of other types or lengths")
    if n == 0 or not np.array_equal(columns["index"], np.arange(n)):
        raise ValueError("not the first images of the split")
    return Evaluation(**columns, about=about)
