"""The reference lists every public name, and the page of errors quotes sentences that the package really says."""

import ast
import re

import pytest
from user_files import ROOT

PACKAGE = ROOT / "seg4diff_tools"
REFERENCE = ROOT / "book" / "reference"
QUOTES = re.findall(r"^\| \*(.+?)\* \|", (ROOT / "book" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)


def sentences() -> str:
    """All text of the package's code, with a brace pair where an f-string puts a value."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


SENTENCES = sentences()


def test_the_page_has_quotes():
    assert len(QUOTES) >= 10


@pytest.mark.parametrize("quote", QUOTES)
def test_quote_is_said(quote):
    assert quote in SENTENCES


def test_every_short_name_is_listed():
    stub = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
    names = {
        f"{home}.{name}" for home, name in re.findall(r"^from (seg4diff_tools\.\w+) import (\w+)", stub, re.MULTILINE)
    }
    listed = re.findall(r"^   ~(\S+)$", (REFERENCE / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(names)


def test_every_package_has_a_page():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"cli", "models"}
    assert {path.stem for path in REFERENCE.glob("*.md")} == packages | {"index", "edits", "helpers"}
    contents = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    assert [name for name in packages if f"reference/{name}\n" not in contents] == []


def test_what_the_page_of_attention_leaves_out_is_on_that_of_edits():
    page, edits = ((REFERENCE / name).read_text(encoding="utf-8") for name in ("attention.md", "edits.md"))
    left_out = re.findall(r"\w+", page.partition(":exclude-members:")[2])
    assert sorted(left_out) == sorted(re.findall(r"^\.\. auto(?:class|function):: (\w+)$", edits, re.MULTILINE))
