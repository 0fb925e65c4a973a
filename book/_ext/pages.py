"""Sphinx extension: chapters with question and answer on the front page; folded arguments in the reference."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

MARK = "```{chapters}\n```"


def opening(notebook: Path) -> tuple[str, str, str]:
    """Title, question, and the first sentences of the answer of a chapter."""
    text = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    title, question, answer = (" ".join(part.split()) for part in text.split("\n\n")[:3])
    answer = re.match(r"\*\*Answer.*?:\*\* (.{30,}?\.)(?: [A-Z]|$)", answer)[1]  # type: ignore[index]
    return title.removeprefix("# "), re.sub(r"^\*\*Question: |\*\*$", "", question), answer[0].upper() + answer[1:]


def chapters(book: Path) -> Iterator[str]:
    """Lines of Markdown: captions of parts, and chapters in the order of the table of contents."""
    number = 0
    for part in yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8"))["parts"]:
        files = [entry["file"] for entry in part["chapters"] if entry["file"].startswith("notebooks/")]
        if files and "caption" in part:
            yield f"\n**{part['caption']}**\n"
        for file in files:
            number += 1
            title, question, answer = opening(book / f"{file}.ipynb")
            yield f"{number}. [{title}]({file}.ipynb): {question}\n   *{answer}*"


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the list where a page asks for it."""
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, "\n".join(chapters(Path(app.srcdir))))


def fold_arguments(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Fold arguments, returns and raises of everything that autodoc describes: purposes can be read at a glance."""
    for content in doctree.findall(addnodes.desc_content):
        for fields in [child for child in content if isinstance(child, nodes.field_list)]:
            names = ", ".join(field[0].astext().lower() for field in fields)
            if names == "type":  # of an attribute
                continue
            start = f'<details class="arguments"><summary>{names}</summary>'
            at = content.index(fields)
            content[at : at + 1] = [
                nodes.raw("", start, format="html"),
                fields,
                nodes.raw("", "</details>", format="html"),
            ]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fill)
    app.connect("doctree-resolved", fold_arguments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
