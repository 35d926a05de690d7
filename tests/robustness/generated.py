"""Calls of every command as hypothesis draws them: options by their types, paths of every kind, configs, files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import tomli_w
from hypothesis import strategies as st

from s2ap_core.config import Config
from s2ap_diag.commands import COMMANDS, main
from s2ap_diag.commands.options.shared import OutputFile

TINY: dict[str, Any] = {
    "data": {"name": "prototypes"},
    "network": {"name": "tiny"},
    "objective": {"eps": "32/255", "step": "16/255", "steps": 1},
    "method": {"name": "hydra", "keep": 0.3},
    "pretrain": {"epochs": 1, "batch_size": 20},
    "prune": {"epochs": 1, "batch_size": 20},
    "finetune": {"epochs": 1, "batch_size": 20},
    "evaluation": {"attack": "pgd-50", "n": 6},
}

PLACES = [
    "run",
    "run/ckpt",
    "run/ckpt/prune-best.safetensors",
    "run/ckpt/prune-epoch-000.safetensors",
    "run/ckpt/pretrain.safetensors",
    "run/masks",
    "run/masks/epoch-000.safetensors",
    "run/results.json",
    "run/config.toml",
    "channels",
    "channels/ckpt/prune-best.safetensors",
    "half",
    "runs",
    "foreign.pt",
    "foreign.npz",
    "images",
    "tiny.toml",
    "grid.toml",
    "made",
    "made.pt",
    "made.toml",
    "made.npz",
    "made.safetensors",
    "made.csv",
    "made.py",
    "text.txt",
    "empty",
    "empty.safetensors",
    "folder",
    "missing",
    "missing/deep/file",
    "pipe",
    "loop",
    "link",
    "broken",
    "device",
    "text.txt/below",
    "é ü.pt",
    "a\nb.pt",
    "-",
    "",
    ".",
    "x" * 300,
    "\udcff.pt",
]
"""Paths from the folder ``box/here`` on; ``made`` and its like are files whose bytes are drawn, too."""

READ = [place for place in PLACES if place.startswith(("run", "made", "foreign", "channels", "half", "link"))]
"""Those that commands have something to say about."""

OUTPUTS = [*PLACES, "new.json", "new/deep/new.csv", "new.png", "new.pdf", "new.svg", "new.PNG", "new.safetensors"]

MADE = [place for place in PLACES if place.startswith("made")]

ORDINARY = {
    "network": ["tiny", "resnet18", "vit", "none", "made.py:Net", "torch.nn:Linear", "missing.py:F", ":", "a:b:c"],
    "dataset": [
        "prototypes",
        "digits",
        "cifar10",
        "cifar10c",
        "images",
        "foreign.npz",
        "made.npz",
        "made.py:load",
        "no",
    ],
    "objective": ["trades", "pgd-at", "mart", "fast-at", "clean", "no"],
    "eps": ["8/255", "0.1", "0", "-1", "nan", "1e400", "1/0", "x"],
    "name": ["digits", "cifar10", "svhn", "imagenet", "cifar10c", "all", "prototypes", "no"],
    "config": ["made.toml", "tiny.toml", "cifar10-resnet18-harp-s2ap-90", "no", "run/config.toml"],
    "source": ["made.toml", "tiny.toml", "grid.toml", "digits", "claims", "no"],
    "grid": ["grid.toml", "made.toml", "no", "tiny.toml"],
    "device": ["cpu", "cuda", "cuda:99", "tpu", "a6000", "h100", ""],
    "arms": ["orig", "s2ap", "no"],
    "where": ["minimizer.gamma=0.01", "seed=0", "no=1", "x", "="],
    "corruption": ["fog", "all", "no"],
    "gpus": ["1", "0", "1,8", "x", "-1", "1" * 50],
    "title": ["a title", "<b>", ""],
    "root": ["runs", "folder", "missing", "file:///tmp/none", "memory://x", "abc://x", "text.txt", "pipe"],
}
"""Of options that are text, by their names."""

SLOW = {"iterations", "steps", "restarts", "rounds", "points"}
"""Numbers that are as much work as they say: a large one is no mistake."""

HELPFUL = {"keep", "network", "dataset", "overrides", "resume", "out", "attack", "json"}
"""Options by which a command gets farther."""

LEFT_OUT = {"address", "nproc", "workers"}
"""Options that start further processes, which have suites of their own."""

SCALARS = st.one_of(
    st.sampled_from(
        [-1, 0, 1, 2, 3, 10**20, 2**63, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), True, False, ""]
    ),
    st.sampled_from(
        ["hydra", "harp", "rlth", "hydra-channels", "snip", "s2ap", "none", "prototypes", "x", "group", "L2"]
    ),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-1, 3), max_size=3),
)


CODE = [b"import torch\nNet = torch.nn.Linear\n", b"load = 3\n", b"def Net(:\n", b"1 / 0\n"]
NUMBERS = [b"[]", b"{}", b"[1e999]", b"null", b"[" * 5000, b"9" * 5000, b"a,b\n1,2\n", b'{"a": NaN}']


@dataclass(frozen=True)
class Call:
    """A command's arguments, the files that are made for it, and the places that it may write to."""

    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)


def leaves(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Go through the commands below one."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from leaves(inner, (*words, name))
    else:
        yield words, command


EVERY = {" ".join(words): (words, command) for words, command in leaves(main, ())}
"""All commands by their words."""

assert {words.split()[0] for words in EVERY} == set(COMMANDS)


def settings_of(model: Any = Config, above: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, found in model.model_fields.items():
        inner = found.annotation
        if hasattr(inner, "model_fields"):
            yield from settings_of(inner, f"{above}{name}.")
        else:
            yield above + name


SETTINGS = sorted(settings_of())
WORK = {f"{stage}.epochs" for stage in ("pretrain", "prune", "finetune")}
"""Settings whose large values are much work, and no mistake."""


@st.composite
def changed_settings(draw: st.DrawFn) -> tuple[str, Any]:
    """A setting, or something like one, and a value for it."""
    key = draw(st.sampled_from([*SETTINGS, "no.such", "data.options.val", "data.options.x", "seed.x", ""]))
    return key, draw(st.integers(-1, 2) if key in WORK else SCALARS)


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """The tiny run's config with a few settings changed, as TOML."""
    config = {name: dict(section) for name, section in TINY.items()}
    for key, value in draw(st.lists(changed_settings(), max_size=3)):
        section, _, name = key.partition(".")
        if name and isinstance(config.setdefault(section, {}), dict):
            config[section][name] = value
        elif section:
            config[section] = value
    return tomli_w.dumps(config).encode(errors="surrogateescape")


@st.composite
def files(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """A config, bytes at random, code, or a good file that is cut short, spliced with another one, or changed."""
    kind = draw(st.sampled_from(["config", "bytes", "cut", "spliced", "flipped", "flipped", "code", "numbers"]))
    if kind == "config":
        return draw(configs())
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "code":
        return draw(st.sampled_from(CODE))
    if kind == "numbers":
        return draw(st.sampled_from(NUMBERS))
    held = bytearray(draw(st.sampled_from(good)))
    at = draw(st.integers(0, len(held) - 1))
    if kind == "cut":
        return bytes(held[:at])
    if kind == "spliced":
        return bytes(held[:at]) + draw(st.sampled_from(good))[at:]
    for place in draw(st.lists(st.integers(0, len(held) - 1), min_size=1, max_size=4)):
        held[place] = draw(st.integers(0, 255))
    return bytes(held)


def mostly(good: st.SearchStrategy[str], odd: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """One call can stumble only once: what is odd comes seldom, so that commands get far."""
    return st.one_of(*[good] * 9, odd)


def values(parameter: click.Parameter, output: bool) -> st.SearchStrategy[str]:
    """Words for an option or argument."""
    kind, name = parameter.type, str(parameter.name)
    odd = st.sampled_from(["", "x", "-1", "nan"])
    if isinstance(kind, click.Choice):
        return mostly(st.sampled_from([str(choice) for choice in kind.choices]), odd)
    if isinstance(kind, click.types.IntParamType):
        large = [] if name in SLOW else [str(10**20), str(2**31)]
        return mostly(st.sampled_from(["1", "2", "3"]), st.one_of(st.sampled_from(["0", *large]), odd))
    if isinstance(kind, click.types.FloatParamType):
        extreme = st.sampled_from(["0", "2", "1e400", "1e-300", "inf"])
        return mostly(st.sampled_from(["0.3", "0.01", "1"]), st.one_of(extreme, odd))
    if name in ORDINARY and not isinstance(kind, click.Path):
        first, *others = ORDINARY[name]
        return mostly(st.just(first), st.sampled_from([*others, *PLACES]))
    if name == "overrides":
        return changed_settings().map(lambda setting: f"{setting[0]}={setting[1]}")
    if output:
        return mostly(
            st.sampled_from([place for place in OUTPUTS if place.startswith("new")]), st.sampled_from(OUTPUTS)
        )
    return mostly(st.sampled_from(READ), st.sampled_from(PLACES))


def writes(parameter: click.Parameter, words: tuple[str, ...]) -> bool:
    """Whether what it names may be written to."""
    folders = {"run": {"out"}, "demo": {"out"}, "landscape": {"out"}, "evaluate": {"evals"}, "sweep": {"root"}}
    folders["data"] = {"root"} if words[-1] == "fetch" else set()
    return isinstance(parameter.type, OutputFile) or str(parameter.name) in folders.get(words[0], set())


DEFAULTS = {
    "run": ["runs"],
    "demo": ["runs"],
    "sweep": ["runs"],
    "evaluate": ["{}/evals", "{}/../evals", "{}/../../evals"],
    "landscape": ["{}/landscape", "{}/../landscape", "{}/../../landscape"],
    "report": ["{}/report.html"],
}
"""Where commands write that are told no place, by what they read."""

SURE = {"demo": ["--device", "tpu"], "sweep": ["--dry-run"], "evaluate": ["--n", "2"]}
"""What keeps a call from minutes of work: a device that is none, a plan without its runs, two images."""


@st.composite
def calls(draw: st.DrawFn, name: str, good: list[bytes]) -> Call:
    """A call of this command."""
    words, command = EVERY[name]
    given: list[str] = []
    named: list[str] = []
    read: list[str] = []
    for parameter in command.params:
        if str(parameter.name) in LEFT_OUT or "--help" in parameter.opts or "--ray" in parameter.opts:
            continue
        argument = isinstance(parameter, click.Argument)
        often = 19 if parameter.required or argument else 5 if str(parameter.name) in HELPFUL else 2
        if draw(st.integers(0, 19)) >= often:
            continue
        output = writes(parameter, words)
        if isinstance(parameter, click.Option) and parameter.is_flag:
            given.append(parameter.opts[0])
            continue
        several = parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs == -1
        for value in draw(st.lists(values(parameter, output), min_size=1, max_size=2 if several else 1)):
            given += [value] if argument else [parameter.opts[0], value]
            (named if output else read).append(value)
    given += SURE.get(words[0], [])
    if words[0] in DEFAULTS:
        named += [place.format(path or ".") for path in (read or ["."]) for place in DEFAULTS[words[0]]]
    made = {
        place: draw(configs() if place == "made.toml" else files(good))
        for place in MADE
        if any(place in word for word in given)
    }
    return Call([*words, *given], made, [place for place in named if place not in ("", "-")])


def written(named: list[str], here: Path) -> list[Path]:
    """The places that a call may write to, but for those that no file can have."""
    return [here / place for place in named if len(place) < 256]
