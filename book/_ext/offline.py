"""Sphinx extension: figures, formulas and explorers of the book work from file://, with the network off.

plotly.js comes out of the installed plotly wheel, so that it fits the figures; MathJax out of sphinx-mathjax-offline;
the explorer's script out of this package.
"""

import json
import re
import shutil
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from seg4diff_tools.explorer import page

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_NOTE = "<p><em>A control that needs Python: it works in JupyterLab (<code>make lab</code>).</em></p>"

PLOTLY = "plotly.min.js"
MATHJAX = "mathjax/tex-svg-full.js"
EXPLORER = "explorer"

HERE = Path(__file__).parent
FIGURES, TABLES = "figures.js", "tables.js"


def copy_scripts(app: Sphinx) -> None:
    """Put plotly.js, MathJax and the explorer where the pages look for them."""
    mathjax = metadata.distribution("sphinx-mathjax-offline").locate_file(f"sphinx-mathjax-offline/static/{MATHJAX}")
    plotly = resources.files("plotly") / "package_data" / PLOTLY
    for name, source in ((MATHJAX, mathjax), (PLOTLY, plotly), (FIGURES, HERE / FIGURES), (TABLES, HERE / TABLES)):
        target = Path(app.outdir, "_static", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(source), target)
    for suffix, content in (("js", page.script()), ("css", page.style())):
        Path(app.outdir, "_static", f"{EXPLORER}.{suffix}").write_text(content, encoding="utf-8")


def figure_html(figure: dict[str, Any]) -> str:
    """The figure as data for figures.js; escaping `<` keeps the JSON from closing its own tag."""
    content = json.dumps(figure, separators=(",", ":")).replace("<", "\\u003c")
    return f'<div class="plotly-figure"><script type="application/json">{content}</script></div>'


def adapt_outputs(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn the outputs that need JupyterLab into HTML, before the page is read."""
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    notebook["metadata"].pop("widgets", None)
    heading = ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.*)$", "".join(cell["source"]), re.MULTILINE) or [heading])[-1]
        elif "mystnb" not in cell["metadata"]:  # what a picture is called where it is not seen
            cell["metadata"]["mystnb"] = {"image": {"alt": f"Figure: {heading}"}}
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if FIGURE in data:
                output["data"] = {"text/html": figure_html(data[FIGURE])}
            elif page.STORED in data:
                output["data"] = {"text/html": page.fragment(data[page.STORED])}
            elif WIDGET in data:
                output["data"] = {"text/html": WIDGET_NOTE}
    source[0] = json.dumps(notebook)


def add_scripts(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Load plotly.js and the explorer on the pages that have one, and on no other."""
    body = context.get("body", "")
    if 'class="plotly-figure"' in body:
        app.add_js_file(PLOTLY)
        app.add_js_file(FIGURES)
    if "<table" in body:
        app.add_js_file(TABLES)
    if 'class="explorer-page"' in body:
        app.add_js_file(f"{EXPLORER}.js")
        app.add_css_file(f"{EXPLORER}.css")


def setup(app: Sphinx) -> dict[str, Any]:
    app.config.mathjax_path = MATHJAX
    app.connect("builder-inited", copy_scripts)
    app.connect("source-read", adapt_outputs)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
