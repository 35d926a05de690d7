"""Where a browser is, and what the tests that need one say where there is none."""

import shutil

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "the report was not tested in a browser; install one: apt-get install chromium chromium-driver"
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync",
)  # fmt: skip
WIDTHS = (1280, 768, 390)
