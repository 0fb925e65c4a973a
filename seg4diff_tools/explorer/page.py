"""The explorer without Python: its script and style as a page loads them from a file, with no network and no server."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"
PARTS = ("elements", "maps", "questions", "panel", "controls", "live", "explorer")
"""Its scripts, each of which needs those before it alone."""
STORED = "application/vnd.seg4diff.explorer+json"
"""MIME type under which a notebook's output keeps what a page needs."""


def module() -> str:
    """The widget's module: the files of `static`, joined."""
    return "\n".join((STATIC / f"{part}.js").read_text(encoding="utf-8") for part in PARTS)


def script() -> str:
    """The widget's module as a classic script, since a browser imports no module from a file: page."""
    explorer = module().replace("export default", "const explorer =")
    return f"(() => {{\n{explorer}\n{(STATIC / 'page.js').read_text(encoding='utf-8')}\n}})();\n"


def style() -> str:
    """The widget's style sheet."""
    return (STATIC / "explorer.css").read_text(encoding="utf-8")


def fragment(stored: Mapping[str, Any]) -> str:
    """HTML that `script` turns into an explorer; escaping `<` keeps the JSON from closing its own tag."""
    content = json.dumps(stored, separators=(",", ":")).replace("<", "\\u003c")
    return f'<div class="explorer-page"><script type="application/json">{content}</script></div>'


def page(stored: Mapping[str, Any], title: str) -> str:
    """A whole page in one file.

    Args:
        stored: as `Explorer.stored` gives it.
        title: of the page.
    """
    # a script would end at its own closing tag, wherever that stood
    code = script().replace("</script", "<\\/script")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>:root { color-scheme: light dark } body { max-width: 60rem; margin: 1rem auto; padding: 0 1rem }\n"
        f"{style()}</style></head><body>{fragment(stored)}<script>{code}</script></body></html>"
    )
