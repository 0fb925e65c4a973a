"""The built report in a real browser with the network off: figures are drawn and formulas are set."""

import io

import pytest

pytest.importorskip("jupyter_book", reason='the book is not installed: pip install -e ".[book]"')

import numpy as np
from built_book import build, pages
from chromium import launch
from PIL import Image

# The theme asks for its icon fonts ahead of the stylesheet, which a browser refuses for file: pages; the stylesheet
# then loads them all the same.
FONT_PRELOAD = "/_static/vendor/fontawesome/"
LOCAL = ("file:", "data:", "blob:")
# Figures are drawn anew where theme or width have changed.
SETTLED = """
() => {
  const dark = document.documentElement.dataset.theme === "dark";
  const figures = [...document.querySelectorAll(".plotly-figure")];
  const wanted = (figure) => `${dark} ${figure.parentElement.clientWidth < 600}`;
  const explorers = document.querySelectorAll(".explorer-page").length;
  return figures.every((figure) => figure.dataset.drawn === wanted(figure) && figure.querySelector(".main-svg"))
    && document.querySelectorAll(".explorer[data-drawn]").length === explorers;
}
"""
# What is cut at the right edge, or makes the page scroll sideways.
TOO_WIDE = """
() => {
  const root = document.documentElement;
  const scrolls = (node) => /(auto|scroll|hidden|clip)/.test(getComputedStyle(node).overflowX);
  const boxed = (node) => {
    for (let outer = node.parentElement; outer !== document.body; outer = outer.parentElement)
      if (scrolls(outer)) return true;
    return false;
  };
  const wide = [...document.querySelectorAll(".bd-article *")].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width > 0 && box.right > root.clientWidth + 1 && !boxed(node);
  });
  const named = (node) => `${node.tagName} ${node.className}: ${Math.round(node.getBoundingClientRect().right)}`;
  const page = root.scrollWidth > root.clientWidth ? [`the page: ${root.scrollWidth}`] : [];
  return [...page, ...wide.slice(0, 5).map(named)];
}
"""
# Pixels from top to bottom that a page may have, folded parts closed, by width.
TALLEST = {1400: 9_000, 390: 14_000}
HEIGHT = "document.querySelector('.bd-article').getBoundingClientRect().bottom + window.scrollY"
# Light grounds in the dark theme, but for pictures.
FRAMES = r"""
() => {
  if (document.documentElement.dataset.theme !== "dark") return [];
  const light = (node) => {
    const [red, green, blue, opacity] = getComputedStyle(node).backgroundColor.match(/[\d.]+/g).map(Number);
    return opacity !== 0 && Math.min(red, green, blue) > 150;
  };
  const grounds = ".cell_output, .cell_output > div, .explorer, .plotly-figure .main-svg";
  return [...document.querySelectorAll(grounds)].filter(light).map((node) => `${node.tagName} ${node.classList}`);
}
"""


@pytest.fixture(scope="module")
def browser():
    with launch("--host-resolver-rules=MAP * ~NOTFOUND") as running:
        yield running


@pytest.fixture(scope="module", params=pages())
def page(browser, request):
    """The page after loading, with whatever went wrong on the way in `page.complaints`."""
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.complaints = []

    def complain(text, address):
        if FONT_PRELOAD not in text + address:
            page.complaints.append(f"{text} {address}"[:300])

    page.on("console", lambda m: complain(m.text, m.location["url"]) if m.type == "error" else None)
    page.on("pageerror", lambda error: complain(str(error), ""))
    page.on("requestfailed", lambda r: complain(f"{r.failure}", r.url))
    page.on("request", lambda r: complain("asked for", r.url) if not r.url.startswith(LOCAL) else None)
    page.goto((build() / f"{request.param}.html").as_uri(), wait_until="load")
    page.wait_for_function("!document.querySelector('.math') || document.querySelector('mjx-container')")
    page.wait_for_function("[...document.querySelectorAll('.plotly-figure')].every(f => f.querySelector('.main-svg'))")
    yield page
    context.close()


def test_nothing_goes_wrong(page):
    page.wait_for_timeout(500)
    assert page.complaints == []


def test_figures_are_drawn(page):
    page.evaluate("document.querySelectorAll('.bd-article details').forEach((part) => (part.open = true))")
    page.wait_for_function(SETTLED)
    for number, figure in enumerate(page.locator(".plotly-figure").all(), 1):
        box = figure.locator(".main-svg").first.bounding_box()
        assert box["width"] > 200 and box["height"] > 100, f"figure {number} has the size {box}"
        figure.scroll_into_view_if_needed()
        pixels = np.asarray(Image.open(io.BytesIO(figure.screenshot())).convert("RGB"))
        colors = len(np.unique(pixels.reshape(-1, 3), axis=0))
        assert colors > 20, f"figure {number} is blank: {colors} colors"
    page.evaluate("document.querySelectorAll('.bd-article details').forEach((part) => (part.open = false))")


def test_icons_are_drawn(page):
    assert page.evaluate("document.fonts.ready.then(() => document.fonts.check('900 16px \"Font Awesome 6 Free\"'))")


def test_pictures_are_shown(page):
    broken = page.evaluate(
        "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 200))"
    )
    assert broken == []


def test_formulas_are_set(page):
    formulas, rendered = page.locator(".math").count(), page.locator(".math mjx-container").all()
    assert len(rendered) >= formulas
    assert all(formula.bounding_box()["width"] > 0 for formula in rendered)
    assert page.locator("[data-mjx-error], mjx-merror").count() == 0


@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (1400, "dark"), (390, "dark"), (390, "light")])
def test_it_fits_the_screen_in_both_themes(page, width, theme):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
    page.wait_for_function(SETTLED)
    page.wait_for_timeout(100)
    assert page.evaluate(HEIGHT) <= TALLEST[width], "fold what is second to the argument, or put figures side by side"
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(FRAMES) == []
    assert page.complaints == []


def test_search_finds_a_word(browser):
    """The search page works from file:// too."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((build() / "search.html").as_uri() + "?q=segmentation")
    page.wait_for_selector("#search-results li a", timeout=30_000)
    context.close()
