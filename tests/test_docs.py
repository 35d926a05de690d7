"""The pages: nothing that can be set or typed is left out, no link is dead, both notebooks run."""

import json
import re
from pathlib import Path

import pytest

from docs import hooks
from s2ap_core.config import Config
from s2ap_diag import _OFFERED

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def anchors(text: str) -> set[str]:
    """What MkDocs and GitHub call the headings, both alike for ours; no heading is inside a fence."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower().replace("`", ""))) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    if page in NOTEBOOKS:
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?ms)^```.*?^```|`[^`\n]+`", "", text)):
        path, _, anchor = target.partition("#")
        if not re.match(r"\w+:", path):
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert file.is_relative_to(ROOT), target
            assert not anchor or anchor in anchors(file.read_text()), target


def test_each_page_is_in_the_sites_contents():
    named = set(re.findall(r": ([\w/.]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages | {f"notebooks/{notebook.stem}.md" for notebook in NOTEBOOKS} <= named


def leaves(model, prefix=""):
    for name, field in model.model_fields.items():
        nested = hasattr(field.annotation, "model_fields")
        yield from leaves(field.annotation, f"{prefix}{name}.") if nested else [prefix + name]


def test_every_setting_has_a_row_with_what_it_is():
    rows = dict(re.findall(r"(?m)^\| `([\w.]+)` \|.*\| (.*) \|$", hooks.settings_page()))
    assert rows.keys() == set(leaves(Config))
    assert [name for name, text in rows.items() if not text] == []


def test_a_settings_row_says_default_and_values_as_toml():
    page = hooks.settings_page()
    assert "| `method.keep` | `0.1` | number, > 0, ≤ 1 |" in page
    assert '| `objective.eps` | `"8/255"` | number or fraction' in page
    assert "| `finetune.awp` | `false` | `true`, `false` |" in page
    assert '| `evaluation.norm` | unset | `"Linf"`, `"L2"`, `"L1"` or unset |' in page
    assert '| `tracking.metrics` | `["curvature"]` |' in page


def test_every_public_name_is_on_the_page_of_python():
    shown = re.findall(r"(?m)^::: ([\w.]+)$", hooks.api_page())
    assert set(_OFFERED.values()) <= set(shown)
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs_and_is_kept_without_what_it_prints(notebook):
    kept = json.loads(notebook.read_text())
    assert all(not cell.get("outputs") for cell in kept["cells"])
    outputs = [o for cell in hooks.run_notebook(notebook).cells for o in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
