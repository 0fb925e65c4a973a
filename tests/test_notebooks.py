"""Names and keywords that chapters and pages use exist; stored outputs are of their code; shown cells are short."""

import ast
import importlib
import inspect
import json
import runpy
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from user_files import ROOT, check_types, python_blocks, sources

from seg4diff_tools import Unsupervised, remember
from seg4diff_tools.evaluation import grouping_scores

PAGES = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md")), *sorted((ROOT / "seg4diff_tools").rglob("*.md"))]
# a page may speak of a pipeline that the reader has
PRELUDE = "from typing import Any\n\npipe: Any\n"
BLOCKS = {str(page.relative_to(ROOT)): PRELUDE + "\n".join(blocks) for page in PAGES if (blocks := python_blocks(page))}
CODE = sources() | BLOCKS | {path.name: path.read_text("utf-8") for path in sorted(ROOT.glob("examples/*.py"))}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# lines of a cell that the report shows unfolded
LONGEST = 20
FOLDED = {"hide-cell", "hide-input", "remove-input"}
# what mypy calls a name that is not there, an attribute that is not there, and a call that cannot be
MISSING = {"attr-defined", "call-arg", "call-overload", "name-defined", "import-not-found", "used-before-def"}
execute = runpy.run_path(str(ROOT / "book" / "execute.py"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return check_types(CODE, tmp_path_factory.mktemp("chapters"), "--allow-redefinition")


@pytest.mark.parametrize("name", CODE)
def test_names_and_keywords_exist(found, name):
    lines = CODE[name].splitlines()
    # what mypy only calls an object, it knows nothing of
    told = [error for error in found[name] if error[1] in MISSING and not error[2].startswith('"object" has no')]
    wrong = [f"{lines[line - 1].strip()}: {text}" for line, _, text in told]
    assert wrong == []


def imports(tree: ast.AST) -> dict[str, Any]:
    """What the names stand for that are imported from the package."""
    names: dict[str, Any] = {"backbone": importlib.import_module("seg4diff_tools.backbones").Backbone}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seg4diff_tools"):
            module = importlib.import_module(str(node.module))
            names |= {alias.asname or alias.name: getattr(module, alias.name, None) for alias in node.names}
    return names


def keys(value: ast.expr, dictionaries: dict[str, set[str]]) -> set[str]:
    """The keys of a dictionary that stands in the code, as far as they do."""
    match value:
        case ast.Name(id=name):
            return dictionaries.get(name, set())
        case ast.Dict(keys=written):
            return {str(key.value) for key in written if isinstance(key, ast.Constant)}
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return keys(left, dictionaries) | keys(right, dictionaries)
    return set()


def meaning(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object of the package that a dotted name stands for; None if it is none."""
    match node:
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=value, attr=attribute):
            owner = meaning(value, names)
            return None if owner is None else getattr(owner, attribute, None)
    return None


def wrong_keywords(code: str) -> Iterator[str]:
    """Keywords that a call gets from a dictionary (`**common`) and cannot take, which mypy does not see."""
    tree = ast.parse(code)
    names = imports(tree)
    dictionaries: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            dictionaries.setdefault(node.targets[0].id, set()).update(keys(node.value, dictionaries))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = meaning(node.func, names)
        if function is remember:
            function = meaning(node.args[0], names)
        if not callable(function):
            continue
        parameters: dict[str, Any] = dict(inspect.signature(function).parameters)
        if function is grouping_scores:
            parameters |= dict.fromkeys(field.name for field in fields(Unsupervised))
        elif any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        for keyword in node.keywords:
            given = {keyword.arg} if keyword.arg else keys(keyword.value, dictionaries)
            for name in sorted(given - set(parameters)):
                yield f"line {node.lineno}: {ast.unparse(node.func)} takes no {name}"


@pytest.mark.parametrize("name", CODE)
def test_dictionaries_of_keywords_fit(name):
    assert list(wrong_keywords(CODE[name])) == []


def test_wrong_keywords_are_found():
    code = """
from seg4diff_tools import OpenVocabulary, load_backbone, remember, segment
from seg4diff_tools.evaluation import grouping_scores
backbone = load_backbone("mini")
common = {"steps_from_end": 8, "seed": 0}
OpenVocabulary(**common)
remember(segment, backbone, **common | {"image": 1})
backbone.add_noise(1, **common)
remember(grouping_scores, backbone, **common)
"""
    assert list(wrong_keywords(code)) == [
        "line 6: OpenVocabulary takes no seed",
        "line 7: remember takes no image",
        "line 7: remember takes no seed",
        "line 7: remember takes no steps_from_end",
        "line 9: remember takes no seed",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_of_this_code(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    stamp = stored["metadata"].get(execute["STAMP"], {})
    now = execute["stamp"](stored)
    age = "" if stamp.get("package") == now["package"] else " (and the package changed since it ran)"
    command = f"python book/execute.py notebooks/{path.name}"
    assert stamp.get("code") == now["code"], f"outputs are older than their code{age}: {command}"


def test_a_stamp_sees_code_alone():
    def notebook(*cells: tuple[str, str]) -> dict[str, Any]:
        return {"cells": [{"cell_type": kind, "source": source} for kind, source in cells]}

    one = execute["stamp"](notebook(("code", "a = 1\n"), ("markdown", "one")))
    assert execute["stamp"](notebook(("code", "# why\na = 1"), ("markdown", "two"))) == one
    assert execute["stamp"](notebook(("code", "a = 2"), ("markdown", "one")))["code"] != one["code"]
    assert execute["stamp"](notebook(("code", "a ="), ("code", "1")))["code"] != one["code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_that_are_shown_are_short(path):
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        source, tags = "".join(cell["source"]), FOLDED.intersection(cell["metadata"].get("tags", ()))
        assert tags or len(source.splitlines()) <= LONGEST, f"fold it (hide-input) or split it:\n{source}"
        words_only = source.lstrip().startswith("Markdown(") or "\nMarkdown(" in source
        assert "remove-input" not in tags or words_only, f"remove-input is for cells that word a sentence:\n{source}"


def test_the_first_snippet_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(python_blocks(ROOT / "README.md")[0], "README.md", "exec"), names)
    assert names["result"].label_map.shape == names["scene"].label_map.shape
