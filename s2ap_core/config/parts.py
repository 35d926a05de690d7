"""What a setting names: a registered part, an installed package's, ``package.module:FACTORY``, ``FILE.py:FACTORY``.

The last two run code. They do so once a user has named them, on the command line or in a config, and never because a
checkpoint or a run that is read names them: see :func:`s2ap_core.files.code.name_by_user`.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError

from s2ap_core.errors import InputError, did_you_mean
from s2ap_core.files import code

F = TypeVar("F", bound=Callable[..., Any])

_held: ContextVar[dict[Path, bytes] | None] = ContextVar("held", default=None)
"""Within :func:`held`: what each file of code held when it was first looked at."""


class Registry(dict[str, F]):
    """Parts of one kind by name. Others join by a line, ``registry["mine"] = factory``.

    Installed packages add parts as entry points of the group ``s2ap_diag.KINDs``, such as ``s2ap_diag.networks``.

    Args:
        kind: what the parts are called in messages, ``network``.
        option: the option of the command line that names one; None where there is none.
    """

    def __init__(self, kind: str, option: str | None, parts: Mapping[str, F]) -> None:
        super().__init__(parts)
        self.kind, self.option = kind, option

    def find(self, name: str) -> F:
        """Find a part by any of its names.

        Raises:
            InputError: if there is none, the user has not named the code that it is in, or that code raises.
        """
        if name in self:
            return self[name]
        if code.is_code(name):
            return self._of_code(name)
        for entry in self._installed():
            if entry.name == name:
                with blamed(f"{self.kind} {name} ({entry.value})", None):
                    part: F = entry.load()
                    return part
        known = [*self, *sorted(entry.name for entry in self._installed())]
        all_of_them = f"choose one of {', '.join(known)}, or name your own, FILE.py:FACTORY"
        raise InputError(f"unknown {self.kind} {name!r}: {did_you_mean(name, known, all_of_them)}")

    def knows(self, name: str) -> bool:
        """Return whether :meth:`find` would look further than the name: nothing is run."""
        return name in self or (
            name in code.named if code.is_code(name) else any(e.name == name for e in self._installed())
        )

    def _installed(self) -> Iterable[Any]:
        return entry_points(group=f"s2ap_diag.{self.kind.replace(' ', '')}s")

    def _of_code(self, name: str) -> F:
        if name not in code.named:
            how = f"by {self.option} {name}" if self.option else "in the config of a run"
            raise InputError(
                f"{self.kind} {name}: a file that is read runs no code; name it yourself {how}, if you trust it"
            )
        where, _, factory = name.rpartition(":")
        module = _module(where)
        part: F | None = getattr(module, factory, None)
        if not callable(part):
            raise InputError(f"{self.kind} {name}: {where} has nothing to call named {factory!r}")
        return part


class blamed:
    """Turn whatever code of the user raises into one line that names the line of its file."""

    def __init__(self, what: str, file: str | None) -> None:
        self.what, self.file = what, file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, InputError) or not isinstance(error, Exception | SystemExit):
            return
        frames = traceback.extract_tb(trace)
        own = [frame for frame in frames if frame.filename == self.file] or frames
        place = f"{own[-1].filename}:{own[-1].lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{error.filename}:{error.lineno}"
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"{self.what}: {place}: {type(error).__name__}: {said}; mend the code") from error


def source_of(name: str) -> Path | None:
    """Return the file that a part's code is in; None for a part that is not code, or of a module without a file."""
    if not code.is_code(name) or name not in code.named:
        return None
    file = getattr(_module(name.rpartition(":")[0]), "__file__", None)
    return Path(file) if file else None


@contextmanager
def held() -> Iterator[None]:
    """Hold the user's code to what it is when it is first looked for, whatever becomes of its files meanwhile.

    What lies within another such block, of a sweep's task for instance, is held to what that one is.
    """
    token = None if _held.get() is not None else _held.set({})
    try:
        yield
    finally:
        if token is not None:
            _held.reset(token)


def _content(path: Path) -> bytes:
    known = _held.get()
    if known is None:
        return path.read_bytes()
    if path not in known:
        known[path] = path.read_bytes()
    return known[path]


def call(
    what: str, part: Callable[..., Any], *given: Any, offered: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call a part of the user's with what it takes of what is offered, and with its own options.

    Args:
        what: how messages call it.
        given: positional arguments.
        offered: keywords that it may take or leave.
        options: keywords that the user gave; checked against the types of the part's annotations.

    Raises:
        InputError: if it takes no such option, an option is of another type, or the part raises.
    """
    try:
        signature = _signature(part)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: its arguments are not known; give a function or a class") from error
    named = {n: p for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    own = {n: p for n, p in list(named.items())[len(given) :] if n not in offered}
    # A module without a constructor of its own has torch's, whose (*args, **kwargs) takes nothing.
    inherited = inspect.isclass(part) and part.__init__.__module__.startswith("torch.")
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()) and not inherited
    arguments = {name: value for name, value in offered.items() if takes_all or name in named}
    for name, value in options.items():
        if name not in own and not (takes_all and name not in offered):
            raise InputError(f"{what} takes no option {name}; its options: {', '.join(own) or 'none'}")
        arguments[name] = _typed(f"{what}: {name}", value, own[name]) if name in own else value
    with blamed(what, _file_of(part)):
        return part(*given, **arguments)


@lru_cache(maxsize=256)
def _signature(part: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(part)


def _typed(what: str, value: Any, parameter: inspect.Parameter) -> Any:
    expected = parameter.annotation
    if expected is parameter.empty:
        expected = type(parameter.default) if isinstance(parameter.default, bool | int | float | str) else Any
    if isinstance(expected, str):  # annotations that are not evaluated
        expected = {"bool": bool, "int": int, "float": float, "str": str}.get(expected, Any)
    try:
        return TypeAdapter(expected).validate_python(value, strict=expected in (bool, int, str))
    except (PydanticUserError, PydanticUndefinedAnnotation):  # a type that it cannot check
        return value
    except ValidationError as error:
        raise InputError(f"{what} = {value!r}: {error.errors()[0]['msg']}") from error


@lru_cache(maxsize=256)
def _file_of(part: Callable[..., Any]) -> str | None:
    try:
        return inspect.getsourcefile(part)
    except TypeError:
        return None


def checksum(content: bytes) -> str:
    """Hash the code of a part: 16 digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return _imported(where)
    path = Path(where).absolute()
    try:
        content = _content(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be read ({reason}); a run keeps a copy of its own in RUN/code") from error
    return _run(path, where, content)


@cache
def _run(path: Path, where: str, content: bytes) -> ModuleType:
    """Run a file once for each content that it has."""
    name = f"s2ap_part_{path.stem}_{checksum(content)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look there
    try:
        with blamed(where, str(path)):
            # Not by the loader, which would read the file again and leave a folder of bytecode beside it.
            exec(compile(content, path, "exec"), vars(module))
    except InputError:
        del sys.modules[name]
        raise
    return module


@cache
def _imported(where: str) -> ModuleType:
    """Import a module, of an installed package or below the working directory, as ``python -m`` would."""
    here = str(Path.cwd())
    with blamed(where, None):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if here in sys.path or not where.startswith(str(error.name)):
                raise
            sys.path.insert(0, here)
            return importlib.import_module(where)


def sources(names: Iterable[str]) -> Iterator[tuple[str, Path, bytes]]:
    """Go through the parts that are code, each with its file and what it holds."""
    for name in dict.fromkeys(names):
        if file := source_of(name):
            yield name, file, _content(file)
