"""The explorer without Python: script and style for a page in a file, without network or server."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"
PARTS = ("elements", "maps", "questions", "links", "panel", "controls", "live", "explorer")
"""Its scripts, in order of dependency."""
STORED = "application/vnd.seg4diff.explorer+json"
"""MIME type of a page's content in a notebook's output."""


def module() -> str:
    """Return the widget's module: the files of `static`, joined."""
    return "\n".join((STATIC / f"{part}.js").read_text(encoding="utf-8") for part in PARTS)


def script() -> str:
    """Return the widget's module as a classic script, since a browser imports no module from a file: page."""
    explorer = module().replace("export default", "const explorer =")
    return f"(() => {{\n{explorer}\n{(STATIC / 'page.js').read_text(encoding='utf-8')}\n}})();\n"


def style() -> str:
    """Return the widget's style sheet."""
    return (STATIC / "explorer.css").read_text(encoding="utf-8")


def fragment(stored: Mapping[str, Any]) -> str:
    """Return HTML that `script` turns into an explorer; `<` is escaped, so that the JSON cannot close its tag."""
    content = json.dumps(stored, separators=(",", ":")).replace("<", "\\u003c")
    return f'<div class="explorer-page"><script type="application/json">{content}</script></div>'


def page(stored: Mapping[str, Any], title: str) -> str:
    """Return a whole page in one file, of the content of `Explorer.stored`."""
    # a closing tag anywhere in the script would end it
    code = script().replace("</script", "<\\/script")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>:root { color-scheme: light dark } body { max-width: 60rem; margin: 1rem auto; padding: 0 1rem }\n"
        f"{style()}</style></head><body>{fragment(stored)}<script>{code}</script></body></html>"
    )
