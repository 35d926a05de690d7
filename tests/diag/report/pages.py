"""Runs that a report may meet, and its page as an HTML parser sees it."""

import json
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import tomli_w
from click.testing import CliRunner, Result

from s2ap_diag.commands import main

SCRIPT = "<script>window.owned = 1</script>"
IMAGE = "\"><img src=x onerror='window.owned = 1'>"
HOSTILE = f"{SCRIPT}{IMAGE}\n../../x %s {{{{ 7 * 7 }}}} {'w' * 300}"
DAMAGED = ("epoch-002.safetensors", "metrics.csv", "half done")


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def copy(run: Path, to: Path, **settings: object) -> Path:
    """The same run elsewhere, under a config with these settings changed."""
    shutil.copytree(run, to)
    config = tomllib.loads((to / "config.toml").read_text())
    for key, value in settings.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (to / "config.toml").write_text(tomli_w.dumps(config))
    return to


def dense(trained: Path, to: Path) -> None:
    """A run that ended with the dense network."""
    copy(trained / "orig", to, evaluation={"stages": ["pretrain"]})
    results = json.loads((to / "results.json").read_text())
    (to / "results.json").write_text(json.dumps({k: results[k] for k in ("pretrain", "evaluate-pretrain")}))
    (to / "sharpness.json").unlink()
    shutil.rmtree(to / "masks")


class Parsed(HTMLParser):
    """Elements with their attributes, and the text within each, as the standard library's parser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = ["-"]
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while tag in self.open and self.open.pop() != tag:
            pass  # table cells end where the next one begins

    def handle_data(self, text):
        self.text.append((self.open[-1], text))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]


def row_of(html: str, name: str) -> dict[str, str]:
    """A run's row in the table of all runs: text by heading, what stands over the heading before it."""
    table = html.partition('<table id="runs">')[2].partition("</table>")[0]
    head, _, body = table.partition("<tbody>")
    headings = [" ".join(_text(cell).split()) for cell in re.findall(r"<th scope=.col..*?</th>", head)]
    (row,) = [part for part in body.split("<tr ") if f">{name}</a>" in part]
    return dict(zip(headings, (_text(f"<t{cell}").strip() for cell in row.split("<t")[1:]), strict=True))


def _text(html: str) -> str:
    return "".join(text for _, text in Parsed(html).text)
