"""The report as a browser sees it: sorted, hovered, printed, and safe from what users write."""

import base64
import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from selenium.webdriver import ActionChains, Keys

from tests.diag.report.browsers import WIDTHS
from tests.reading import masks_in


def column(browser, heading: str, nth: int = 0) -> tuple[object, Callable[[], list[str]]]:
    """The button of a heading, and a function that reads its column from top to bottom."""
    headings = browser.find_elements("css selector", "#runs thead tr:last-child th")
    index = [i for i, th in enumerate(headings) if th.text.split("\n")[0].startswith(heading)][nth]
    script = "return [...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[arguments[0]].innerText)"
    return headings[index].find_element("tag name", "button"), lambda: browser.execute_script(script, index)


def test_it_loads_cleanly_and_fetches_nothing(opened, page):
    browser = opened()
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith("data:") and url != page.as_uri()] == []
    assert browser.execute_script("return window.owned") is None
    assert browser.execute_script("return document.title").startswith("<script>window.owned")


def test_the_policy_stops_foreign_scripts_styles_and_images(opened):
    browser = opened()
    browser.execute_script(
        """
        window.stopped = [];
        addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.owned = 1";
        const image = document.createElement("img");
        image.src = "picture.png";
        const text = document.createElement("p");
        text.setAttribute("style", "color: red");
        document.body.append(script, image, text);
        """
    )
    stopped = browser.execute_async_script("const done = arguments[0]; setTimeout(() => done(window.stopped), 200)")
    assert sorted(stopped) == ["img-src", "script-src-elem", "style-src-attr"]
    assert browser.execute_script("return window.owned") is None


def test_the_table_sorts_by_number_both_ways(opened):
    browser = opened()
    button, read = column(browser, "seed")
    before = read()
    heading = button.find_element("xpath", "..")
    assert heading.get_attribute("aria-sort") is None
    button.click()
    assert read() == sorted(before, key=int) != sorted(before)
    assert heading.get_attribute("aria-sort") == "ascending"
    button.click()
    assert read() == sorted(before, key=int, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    other, _ = column(browser, "run")
    other.click()
    assert heading.get_attribute("aria-sort") is None
    assert len(browser.find_elements("css selector", "[aria-sort]")) == 1


def test_the_table_sorts_from_the_keyboard_and_keeps_the_missing_last(opened):
    browser = opened()
    button, read = column(browser, "γ")
    browser.execute_script("arguments[0].focus()", button)
    for order in ("ascending", "descending"):
        ActionChains(browser).send_keys(Keys.ENTER).perform()
        assert button.find_element("xpath", "..").get_attribute("aria-sort") == order
        assert read() == ["0.01", "0.01", "–", "–", "–", "–"]
    ActionChains(browser).send_keys(Keys.TAB, Keys.SPACE).perform()
    assert column(browser, "sparsity")[0].find_element("xpath", "..").get_attribute("aria-sort") == "ascending"


def test_sections_open_by_click_link_and_all_at_once(opened):
    browser = opened()

    def open_sections() -> list[bool]:
        return browser.execute_script("return [...document.querySelectorAll('details.run')].map(d => d.open)")

    assert not any(open_sections())
    browser.find_element("css selector", "details.run > summary").click()
    assert open_sections() == [True] + [False] * 5
    browser.find_element("css selector", '#runs a[href="#run-3"]').click()
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert open_sections() == [True, False, True] + [False] * 3
    open_all, close_all = browser.find_elements("css selector", ".controls button")
    open_all.click()
    assert all(open_sections())
    close_all.click()
    assert not any(open_sections())


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(opened, world_page, width):
    browser = opened(width, page=world_page)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wide = """
        const room = document.documentElement.clientWidth;
        const scrolls = (e) => e.closest(".wide") && !e.classList.contains("wide");
        return [document.documentElement.scrollWidth - room,
                [...document.body.querySelectorAll("*")].filter((e) => !scrolls(e) && !e.closest("svg")
                    && e.getBoundingClientRect().right > room + 1).map((e) => e.outerHTML.slice(0, 80))]
    """
    overflow, elements = browser.execute_script(wide)
    assert overflow <= 0
    assert elements == []
    assert browser.execute_script("return document.querySelector('svg.chart').getBoundingClientRect().width") > 280


@pytest.mark.parametrize("width", WIDTHS)
def test_every_column_can_be_reached(opened, world_page, width):
    """Scrolled to, with the keyboard too, a heading stands whole beside the run's name, which stays."""
    browser = opened(width, page=world_page)
    boxes = browser.find_elements("css selector", "[data-column]")
    browser.execute_script("document.querySelector('.columns').open = true")
    for box in boxes:
        if not box.is_selected():
            box.click()
    place = """
        const cell = arguments[0], all = document.querySelector("#runs").closest(".wide");
        cell.scrollIntoView({ inline: "nearest", block: "center" });
        all.scrollLeft += Math.min(0, cell.getBoundingClientRect().left - first().right);
        function first() { return document.querySelector("#runs th").getBoundingClientRect(); }
        const at = cell.getBoundingClientRect();
        return [first().right, at.left, at.right, Math.min(innerWidth, all.getBoundingClientRect().right)];
    """
    headings = browser.find_elements("css selector", "#runs thead th")[1:]
    assert len(headings) == len(boxes)
    for heading in headings:
        named, left, right, end = browser.execute_script(place, heading)
        assert named - 1 <= left < right <= end + 1, heading.text
    box = browser.find_element("css selector", ".wide:has(#runs)")
    assert box.get_attribute("tabindex") == "0"
    boxes[0].click()
    assert not headings[0].is_displayed()


def test_runs_under_other_attacks_are_ranked_apart(opened, world_page):
    browser = opened(page=world_page)
    robust = (
        "[...document.querySelectorAll('#runs thead button')].filter(b => b.textContent === 'finetuned robust, %')[0]"
    )
    for sign in (1, -1):
        browser.execute_script(f"{robust}.click()")
        rows = browser.execute_script(
            "return [...document.querySelectorAll('#runs tbody tr')].map(r => [r.className, r.innerText])"
        )
        lines = [i for i, (kind, _) in enumerate(rows) if kind == "rank"]
        assert [rows[i][1].strip() for i in lines] == [
            "360 images, apgd, Linf, eps 32/255",
            "360 images, pgd-50, Linf, eps 32/255",
        ]
        assert [i for i in lines] == [0, 7]
        index = browser.execute_script(f"return {robust}.closest('th').cellIndex")
        read = "return [...document.querySelectorAll('#runs tr:not(.rank)')].map(r => +r.cells[arguments[0]].dataset.v)"
        values = browser.execute_script(read, index)[1:]
        assert values[:6] == sorted(values[:6], reverse=sign < 0)
        assert values[6:] == sorted(values[6:], reverse=sign < 0)
    browser.execute_script("document.querySelectorAll('#runs thead button')[0].click()")
    assert not browser.find_elements("css selector", ".rank")


def test_filters_hold_for_table_pictures_and_sections(opened, world_page):
    browser = opened(page=world_page)

    def seen() -> tuple[int, int, int]:
        return tuple(
            browser.execute_script(f"return [...document.querySelectorAll('{selector}')].filter(e => {kept}).length")
            for selector, kept in (
                ("#runs tbody tr", "e.checkVisibility()"),
                ("details.run", "e.checkVisibility()"),
                (".card:first-of-type .dot.one", "!e.classList.contains(`out`)"),
            )
        )

    assert seen() == (9, 9, 12)
    find = browser.find_element("id", "find")
    find.send_keys("hydra s2ap")
    assert seen() == (3, 3, 6)
    assert browser.find_element("id", "count").text == "3 of 9 runs"
    fold = browser.find_element("xpath", "//label[contains(., 'data.options.fold')]/select")
    fold.send_keys("2")
    assert seen() == (1, 1, 2)
    find.clear()
    find.send_keys("x" * 9, *[Keys.BACKSPACE] * 9)
    assert seen() == (3, 3, 4)
    fold.send_keys("any")
    assert seen() == (9, 9, 12)


def test_an_arm_is_hidden_from_the_keyboard(opened, world_page):
    browser = opened(page=world_page)
    button = browser.find_element("css selector", ".arms button")
    browser.execute_script("arguments[0].focus()", button)
    drawn = "document.querySelectorAll('.card:first-of-type svg.chart [data-arm=\"0\"]')"
    curves = f"return [...{drawn}].map(e => e.getClientRects().length > 0)"
    assert all(browser.execute_script(curves))
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    assert button.get_attribute("aria-pressed") == "false"
    assert not any(browser.execute_script(curves))
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    assert all(browser.execute_script(curves))


def test_overlaid_curves_and_dots_are_read_with_the_arrow_keys(opened, world_page):
    browser = opened(page=world_page)
    tip = browser.find_element("id", "tip")
    curves, dots = (browser.find_elements("css selector", ".card:first-of-type svg.chart")[i] for i in (0, 3))
    browser.execute_script("arguments[0].focus()", curves)
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    assert [line.partition(":")[0] for line in tip.text.splitlines()] == [
        "orig, all scores, epoch 1", "orig, epoch 1", "s2ap, all scores, epoch 1", "s2ap, epoch 1",
    ]  # fmt: skip
    browser.execute_script("arguments[0].focus()", dots)
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert "raw mask, seed" in tip.text
    assert "robust" in tip.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_arms_are_told_apart_by_the_colour_blind(opened, scheme):
    """Colours of arms differ for readers without red, green or blue cones, and stand out from the ground."""
    browser = opened(scheme=scheme)
    style = "return arguments[0].map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
    ground, *colours = browser.execute_script(style, ["ground", *(f"c{i}" for i in range(8))])
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.2, 1.4.11
    for kind in CONFUSIONS:
        seen = [lab(np.clip(CONFUSIONS[kind] @ linear(colour), 0, 1)) for colour in colours]
        for i, first in enumerate(seen[:4]):
            for second in seen[:i]:
                assert np.linalg.norm(first - second) > 12, (kind, i)


CONFUSIONS = {
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
"""What linear RGB looks like without one kind of cones (Machado, Oliveira and Fernandes 2009, severity 1)."""


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB under D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_pointer_and_arrow_keys_read_the_values(opened, trained):
    browser = opened()
    browser.find_element("css selector", '#runs a[href="#run-5"]').click()
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    section = browser.find_element("css selector", "#run-5")
    assert "orig" in section.text.splitlines()[0]
    tip = browser.find_element("id", "tip")
    rows = pd.read_csv(trained / "orig/metrics.csv")
    readings = rows[(rows.stage == "prune") & rows.iteration.isna()].set_index(["metric", "epoch"])["value"]
    loss = section.find_element("css selector", "svg.chart")  # the first picture
    assert tip.text == ""
    ActionChains(browser).move_to_element_with_offset(loss, 2 - loss.size["width"] // 2, 0).perform()
    said, _, value = tip.text.rpartition(" ")
    assert said == "search, epoch 0:"
    assert float(value) == pytest.approx(readings["val_loss", 0], rel=1e-3)
    assert len(loss.find_elements("css selector", ".near")) == 1
    heat = section.find_element("css selector", "svg.heat")
    browser.execute_script("arguments[0].focus()", heat)
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    masks = [masks_in(trained / f"orig/masks/epoch-{epoch:03d}.safetensors") for epoch in (0, 2)]
    h = (masks[0]["conv2.weight"] ^ masks[1]["conv2.weight"]).mean()
    assert tip.text.startswith("conv2, epoch 2: ")
    assert float(tip.text.rpartition(" ")[2]) == pytest.approx(h, rel=5e-3)
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert tip.text == ""


def test_print_shows_every_section_and_no_controls(opened):
    browser = opened(media="print")
    shown = "return [...document.querySelectorAll(arguments[0])].map(e => e.checkVisibility())"
    opened_before = browser.execute_script("return [...document.querySelectorAll('details')].map(d => d.open)")
    assert not any(browser.execute_script("return [...document.querySelectorAll('details.run')].map(d => d.open)"))
    for selector in ("details.run figure", "details.run pre", ".legend dl"):
        visible = browser.execute_script(shown, selector)
        assert visible, selector
        assert all(visible), selector
    assert not any(browser.execute_script(shown, ".controls"))
    page = base64.b64decode(browser.print_page())
    assert page.startswith(b"%PDF")
    assert len(browser.find_elements("css selector", "details.run svg.heat")) >= 5  # drawn for the paper
    now = browser.execute_script("return [...document.querySelectorAll('details')].map(d => d.open)")
    assert now == opened_before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(opened, scheme):
    browser = opened(scheme=scheme)
    names = ("ground", "ink", "faint", "link")
    style = "return arguments[0].map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
    ground, *texts = (luminance(value) for value in browser.execute_script(style, names))
    assert (ground < 0.1) == (scheme == "dark")
    for text in texts:
        low, high = sorted((ground, text))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    return float(np.dot(linear(colour), (0.2126, 0.7152, 0.0722)))


def linear(colour: str) -> np.ndarray:
    """Linear RGB of #rgb or #rrggbb."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    return np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels])


def test_a_section_is_filled_when_it_is_opened(opened, trained):
    """300 runs open at once, since tables and maps of a run are made when somebody looks at it."""
    browser = opened()
    inside = "return document.querySelectorAll('details.run :is(.values, svg.heat, [tabindex])').length"
    assert browser.execute_script(inside) == 0
    browser.find_element("css selector", '#runs a[href="#run-5"]').click()
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    rows = pd.read_csv(trained / "orig/metrics.csv")
    readings = rows[(rows.stage == "prune") & rows.iteration.isna()].set_index(["metric", "epoch"])["value"]
    read = """
        const table = document.querySelector("#run-5 .values");
        return [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent));
    """
    head, *lines = browser.execute_script(read)
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    for heading, metric in (
        ("Robust validation loss: search", "val_loss"),
        ("λ_max, BatchNorm batch: live channels", "lambda_max_live_batch"),
    ):
        values = [float(line[head.index(heading)]) for line in lines[1:]]
        np.testing.assert_allclose(values, [readings[metric, epoch] for epoch in (1, 2, 3)], rtol=2e-3)
    assert lines[0][head.index("h to the first mask")] == "–"
