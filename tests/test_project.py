"""The project's files agree with each other, and the modules keep to their floors."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import seg4diff_tools

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "seg4diff_tools"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# A module imports only from floors below its own; CONTRIBUTING.md says why.
FLOORS = [
    {"errors"},
    {"_code", "_runs", "exercises", "indices"},
    {"_netcdf", "images", "paper", "prompts"},
    {"families"},
    {"attention", "datasets", "scenes"},
    {"backbones", "plotting"},
    {"caching"},
    {"explorer", "generation", "segmentation"},
    {"evaluation"},
    {"analysis", "magnet", "pretrain"},
    {"cli"},
    {"__main__"},
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def requirements() -> list[Requirement]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [one for group in groups for line in group if (one := Requirement(line)).name != PROJECT["name"]]


def test_every_pin_is_exact():
    for pin in pins().values():
        assert [part.operator for part in pin.specifier] == ["=="] and "*" not in str(pin.specifier), str(pin)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_pins_satisfy_pyproject(requirement):
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} has no pin: make lock"
    (exact,) = pin.specifier
    assert requirement.specifier.contains(exact.version), f"{pin} does not satisfy {requirement}"


def test_environment_asks_conda_for_python_alone():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, rest = environment["dependencies"]
    assert pip == "pip"
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert rest == {"pip": ["-c constraints.txt", "-e .[book]"]}


def test_hooks_use_the_pinned_linter():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    used = {wanted for repo in config["repos"] for hook in repo["hooks"] for wanted in hook["additional_dependencies"]}
    assert str(pins()["ruff"]) in used


def modules() -> list[Path]:
    """Every Python file of the package but its own __init__."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def top(path: Path) -> str:
    """The module or subpackage, directly below the package, to which a file belongs."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, inside functions too."""
    folder = ("seg4diff_tools", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            source = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*source, alias.name]) for alias in node.names)


def test_every_module_has_a_floor():
    assert {top(path) for path in modules()} == set(FLOOR), "the table of floors and the package differ"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_below(path):
    module = top(path)
    for name in imported(path):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package == "seg4diff_tools" and other in FLOOR and other != module:
            assert FLOOR[other] < FLOOR[module], f"{module} (floor {FLOOR[module]}) imports {name} ({FLOOR[other]})"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_annotations_stay_checked(path):
    assert "__future__.annotations" not in imported(path), "it turns the shape check off"


def test_import_is_light():
    script = (
        "import sys, time; began = time.perf_counter(); import seg4diff_tools; "
        "print(time.perf_counter() - began, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, torch, numpy = result.stdout.split()
    assert float(seconds) < 1
    assert (torch, numpy) == ("False", "False")


@pytest.mark.parametrize("name", vars(seg4diff_tools)["__all__"])
def test_every_public_name_exists(name):
    assert getattr(seg4diff_tools, name) is not None
    assert name in dir(seg4diff_tools)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"):
        _ = getattr(seg4diff_tools, "segm" + "nt")


def test_no_file_is_too_large():
    """The limit of the pre-commit hook, for those who commit without it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of files that belong to it")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    large = {path.name: path.stat().st_size for path in files if path.is_file() and path.stat().st_size > 15_000 * 1024}
    assert large == {}
