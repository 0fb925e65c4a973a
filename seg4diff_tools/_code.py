"""What a function does, as a digest: its source, its defaults and the variables that it reads."""

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import Any

from seg4diff_tools.errors import InputError

_HERE = __name__.partition(".")[0]


def add_code(content: Any, value: FunctionType | type, add: Callable[[Any, Any], None]) -> None:
    """Add a function or class to a hash: its source, defaults, and what it closes over or reads from its module.

    Of an installed one the name and defaults count, since versions are hashed elsewhere. `add` adds any other value.

    Raises:
        InputError: its source, or a variable that it reads, cannot be read.
    """
    value = inspect.unwrap(value)
    content.update(f"{value.__module__}.{value.__qualname__}".encode())
    if isinstance(value, FunctionType):
        add(content, [value.__defaults__, value.__kwdefaults__])
        add(content, [cell.cell_contents for cell in value.__closure__ or ()])
    if _is_installed(value.__module__):
        return  # its version is in the key
    content.update(_source(value))
    if isinstance(value, FunctionType):
        add(content, _surroundings(value, add))


def _is_installed(module: str) -> bool:
    """Whether a module belongs to this package, to Python, or to a library."""
    if module.partition(".")[0] in (_HERE, "builtins"):
        return True
    path = getattr(sys.modules.get(module), "__file__", None)
    return path is not None and any(
        path.startswith(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")
    )


def _source(value: FunctionType | type | ModuleType) -> bytes:
    try:
        return inspect.getsource(value).encode()
    except (OSError, TypeError) as error:
        raise InputError(f"expected a function with its source at hand, got {value.__qualname__}") from error


def _surroundings(function: FunctionType, add: Callable[[Any, Any], None]) -> list[Any]:
    """Digests of what a user's function reads from its module, directly or through other functions there."""
    found: dict[str, str] = {}
    waiting: list[FunctionType] = [function]
    while waiting:
        reader = waiting.pop()
        names: set[str] = set()
        codes = [reader.__code__]
        while codes:
            code = codes.pop()
            names.update(code.co_names)
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for name in (names & reader.__globals__.keys()) - found.keys():
            value = inspect.unwrap(reader.__globals__[name])
            own = hashlib.sha256()
            if isinstance(value, ModuleType):
                own.update(b"" if _is_installed(value.__name__) else _source(value))
            elif isinstance(value, FunctionType) and value.__module__ == function.__module__:
                own.update(_source(value))
                waiting.append(value)
            else:
                try:
                    add(own, value)
                except InputError as error:
                    raise InputError(f"{reader.__qualname__} reads the variable {name!r}: {error}") from error
            found[name] = own.hexdigest()
    return sorted(found.items())
