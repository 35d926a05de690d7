"""What `make docs` adds to the pages: every setting, formulas, notebooks with what they print, pages from elsewhere.

MkDocs calls the functions named ``on_...``. What only building needs is imported where it is used: the tests call the
rest without it.
"""

import inspect
import os
import re
import sys
import tempfile
import types
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from s2ap_core.config import Config
from s2ap_diag import _OFFERED

ROOT = Path(__file__).parents[1]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "figures/gallery")
"""Pages and folders of the checkout that are pages of the site too."""

BASES = (
    "s2ap_core.config.Config",
    "s2ap_core.data.InMemory",
    "s2ap_core.methods.Method",
    "s2ap_core.training.loop.Callback",
    "s2ap_core.training.objectives.Objective",
)
"""What parts of one's own are made of."""


# Every setting, from the models themselves.


def settings_page() -> str:
    """Write a table of all settings, a section for each group."""
    top = {name: field for name, field in Config.model_fields.items() if not _is_group(field.annotation)}
    parts = ["## Of a run\n\n" + _table("", Config, top)]
    for name, field in Config.model_fields.items():
        if _is_group(field.annotation):
            about, _ = described(field.annotation)
            parts.append(
                f"## {name}\n\n{about}\n\n" + _table(f"{name}.", field.annotation, field.annotation.model_fields)
            )
    return "\n\n".join(parts)


def described(group: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """Read a group's docstring: what it is about, and its settings' descriptions, those of its bases included."""
    texts: dict[str, str] = {}
    for base in reversed([c for c in group.__mro__ if issubclass(c, BaseModel) and c is not BaseModel]):
        _, _, listed = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8,}.*)*)", listed, re.MULTILINE):
            texts |= {name: _markdown(text) for name in names.split(", ")}
    return _markdown(inspect.cleandoc(group.__doc__ or "").partition("Attributes:\n")[0]), texts


def _table(prefix: str, group: type[BaseModel], fields: dict[str, FieldInfo]) -> str:
    _, texts = described(group)
    rows = ["| setting | default | values | |", "|---|---|---|---|"]
    for name, field in fields.items():
        bounds = [f"{sign} {getattr(m, key)}" for m in field.metadata for key, sign in _BOUNDS if hasattr(m, key)]
        values = ", ".join([_kind(field.annotation), *bounds])
        rows.append(f"| `{prefix}{name}` | {_toml(field.get_default())} | {values} | {texts.get(name, '')} |")
    return "\n".join(rows)


_BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
_WORDS = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text", Path: "path",
          Fraction: "number or fraction (`\"8/255\"`)", dict: "table", type(None): "unset"}  # fmt: skip


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    return _WORDS[origin or annotation]


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str | Fraction) else f"`{value}`".replace("'", '"')


def _markdown(text: str) -> str:
    """Turn a docstring's text into one line of Markdown: roles are only code there."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def api_page() -> str:
    """Ask mkdocstrings for each public name, by the module that it is defined in."""
    ours = dict.fromkeys(_OFFERED.values())
    return (
        "## s2ap_diag\n\n"
        + "\n\n".join(f"::: {path}" for path in ours)
        + ("\n\n## s2ap_core: what parts of your own are made of\n\n" + "\n\n".join(f"::: {path}" for path in BASES))
    )


# Formulas: MathML, which browsers draw by themselves.


def formula(source: str, *_: Any, **__: Any) -> str:
    """Turn a fence of LaTeX into MathML."""
    from latex2mathml.converter import convert  # of the extra docs

    return str(convert(source, display="block"))


def on_config(config: Any) -> Any:
    """Draw fences called ``math``, as GitHub does."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


# Notebooks and pages from outside docs/.


def run_notebook(path: Path) -> Any:
    """Execute a notebook in the folder that it lies in; what raises in it is raised here."""
    import nbformat  # these two are of the extras test and docs
    from nbclient import NotebookClient
    from traitlets.config import Config

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    # A kernel that listens on TCP warns that others of this machine may read along. Sockets have their whole path: it
    # runs in another folder than we do.
    with tempfile.TemporaryDirectory() as place:
        sockets = Config({"ConnectionFileMixin": {"transport": "ipc", "ip": f"{place}/kernel"}})
        NotebookClient(notebook, timeout=600, startup_timeout=600, resources=folder, config=sockets).execute()
    return notebook


def on_files(files: Any, config: Any) -> Any:
    """Add what does not lie in docs/, and the notebooks with what they print."""
    from mkdocs.structure.files import File  # of the extra docs
    from nbconvert import MarkdownExporter

    for path in (file for name in OUTSIDE for file in [ROOT / name, *(ROOT / name).rglob("*")] if file.is_file()):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        text, resources = MarkdownExporter().from_notebook_node(
            run_notebook(path), {"output_files_dir": f"{path.stem}_files"}
        )
        text = re.sub(r"<style scoped>.*?</style>", "", text, flags=re.DOTALL)
        text += f"\n\n[This notebook]({path.name}), to run it yourself.\n"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and point links that leave docs/ to the same pages in the site."""
    if page.file.src_uri == "settings.md":
        return markdown + "\n\n" + settings_page()
    if page.file.src_uri == "api.md":
        return markdown + "\n\n" + api_page()
    if page.file.src_uri in OUTSIDE:
        markdown = markdown.replace("](docs/", "](")
    markdown = re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, OUTSIDE))})", r"](\1", markdown)
    return re.sub(r"\]\(notebooks/(\w+)\.ipynb", r"](notebooks/\1.md", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave an option's cell empty where it has no default: since click 8.3 that is a value of its own."""
    return html.replace("<code>Sentinel.UNSET</code>", "")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would load something from elsewhere: the site is read without a network, too."""
    loads = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'> ]+)", output)
    loads += re.findall(r"<link\b(?=[^>]*stylesheet)[^>]*\bhref=[\"']?((?:https?:)?//[^\"'> ]+)", output)
    if loads:
        raise ValueError(f"{page.file.src_uri} loads {loads[0]}: put it into docs/")
    return output
