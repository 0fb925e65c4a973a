"""The browser that tests drive."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launch(*arguments: str) -> Iterator:
    """A running browser, or a skipped test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason='playwright is not installed: pip install -e ".[dev]"')
    if CHROMIUM is None:
        pytest.skip("no browser: install Debian's chromium, or set CHROMIUM to the path of one")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(arguments))
        yield running
        running.close()
