"""The report stands on its own: all pages, all cells, nothing from the network, nothing too large."""

import html
import json
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("jupyter_book", reason='the book is not installed: pip install -e ".[book]"')

from built_book import BOOK, NOTEBOOKS, ROOT, build, pages

from seg4diff_tools.explorer.page import STORED

NOTEBOOK_LIMIT = 4_000_000
EXPLORER_LIMIT = 3_000_000
BOOK_LIMIT = 60_000_000
CDN = re.compile(r"""(?:https?:)?//[\w.-]*(?:cdn|unpkg|jsdelivr|googleapis|gstatic|cloudflare|mybinder)[\w.-]*""")
# Folders in which people and build machines keep their checkouts.
PRIVATE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|work|workspace|builds|opt|mnt)/[\w.-]+")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def outputs(path: Path) -> list[dict]:
    return [output for cell in code_cells(path) for output in cell["outputs"]]


class Loads(HTMLParser):
    """Addresses that a browser fetches by itself, unlike the links that a reader may follow."""

    def __init__(self, html: str):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        name = "href" if tag == "link" else "src"
        if tag != "a":
            self.addresses += [value for key, value in attrs if key in (name, "data-src") and value]


def test_every_notebook_is_a_chapter():
    assert [f"notebooks/{path.stem}" for path in NOTEBOOKS] == sorted(p for p in pages() if p.startswith("notebooks/"))


@each_notebook
def test_every_cell_ran(path):
    for number, cell in enumerate(code_cells(path), 1):
        where = f"code cell {number} of {path.name}: {''.join(cell['source'])[:60]!r}"
        assert cell["execution_count"] == number, f"{where} was not run in order; make report runs it"
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds, f"{where} failed"
        assert not [o for o in cell["outputs"] if o.get("name") == "stderr"], f"{where} wrote a warning"


@each_notebook
def test_notebook_is_portable(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"]
    assert path.stat().st_size <= NOTEBOOK_LIMIT, "store smaller arrays (uint8, float32) or fewer figures"
    texts = ["".join(cell["source"]) for cell in notebook["cells"]]
    for output in outputs(path):
        data = output.get("data", {})
        texts += ["".join(text) for text in (output.get("text", ""), data.get("text/plain", ""))]
        texts.append(re.sub(r"base64,[\w+/=]+", "", "".join(data.get("text/html", ""))))
    for text in texts:
        assert str(ROOT) not in text and not PRIVATE_PATH.search(text), f"a path of one machine: {text[:200]!r}"


def test_every_page_is_built():
    folder = build()
    assert (folder / "index.html").is_file()
    for page in pages():
        assert (folder / f"{page}.html").is_file(), f"{page} is in _toc.yml but has no page"


@each_notebook
def test_the_front_page_has_each_chapter_with_question_and_answer(path):
    told = re.sub(r"<[^>]*>", "", html.unescape((build() / "intro.html").read_text("utf-8")))
    plain = str.maketrans("\u2019\u2018\u201c\u201d", "''\"\"")
    title, question, answer = runpy.run_path(str(BOOK / "_ext" / "pages.py"))["opening"](path)
    assert f"{title}: {question}\n{answer}" in told.translate(plain)


def test_the_reference_folds_arguments_and_nothing_else():
    page = (build() / "reference" / "segmentation.html").read_text("utf-8")
    folded = re.findall(r'<details class="arguments"><summary>([^<]*)</summary>', page)
    assert page.count("</details>") >= len(folded) > 5
    assert {name for names in folded for name in names.split(", ")} <= {
        "parameters",
        "returns",
        "raises",
        "type",
        "yields",
    }


@each_notebook
def test_every_figure_is_in_its_page(path):
    page = (build() / "notebooks" / f"{path.stem}.html").read_text()
    plotly = sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs(path))
    assert page.count('class="plotly-figure"') == plotly
    assert ("plotly.min.js" in page) == (plotly > 0)
    images = sum(
        any(kind.startswith("image/") for kind in output.get("data", {})) and STORED not in output["data"]
        for output in outputs(path)
    )
    assert page.count("/_images/") >= images


@each_notebook
def test_every_explorer_is_in_its_page(path):
    page = (build() / "notebooks" / f"{path.stem}.html").read_text()
    stored = [output["data"][STORED] for output in outputs(path) if STORED in output.get("data", {})]
    assert page.count('class="explorer-page"') == len(stored)
    assert ("explorer.js" in page, "explorer.css" in page) == (bool(stored), bool(stored))
    assert len(json.dumps(stored)) <= EXPLORER_LIMIT, "store fewer characters: explore(..., store=500_000)"


def test_pages_load_nothing_from_the_network():
    folder = build()
    # What lies under _static are the theme's own templates, which no page shows.
    found = sorted(file for file in folder.rglob("*.html") if "_static" not in file.parts)
    assert len(found) > len(pages())
    for file in found:
        text = file.read_text()
        assert not CDN.search(text), f"{file.name} names {CDN.search(text)}"
        for address in Loads(text).addresses:
            assert not re.match(r"(?:https?:)?//", address), f"{file.name} loads {address}"
            local = re.split(r"[?#]", address)[0]
            if local and not address.startswith("data:"):
                assert (file.parent / local).is_file(), f"{file.name} loads {address}, which was not built"


def test_book_is_small():
    size = sum(file.stat().st_size for file in build().rglob("*") if file.is_file())
    assert size <= BOOK_LIMIT, f"the built book has {size / 1e6:.0f} MB"
