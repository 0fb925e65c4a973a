"""See, measure and use the segmentation that emerges in the attention of text-to-image diffusion transformers.

Importing the package is light. `__init__.pyi` lists the public names for type checkers, and the same list is read
here: a name's module, and torch with it, loads when the name is first used.
"""

import ast
from importlib import import_module
from importlib.resources import files
from typing import Any

__version__ = "0.2.0"


def _homes() -> dict[str, str]:
    """The module of each public name, as the stub imports it."""
    stub = ast.parse(files(__name__).joinpath("__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOMES = _homes()
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - strings, read from the stub


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    value = import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
