"""Exercises of the chapters: one line that says whether an answer is right."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, get_type_hints

from seg4diff_tools.errors import InputError, shown

_WORDS = {int: "a whole number", float: "a number", str: "a text", tuple: "a tuple", bool: "True or False"}
_ABSTRACT: dict[Any, Any] = {int: Integral, float: Real}


def check(answer: Any, rule: Callable[[Any], tuple[bool, str]]) -> None:
    """Print whether an answer to an exercise is right, and what was measured.

    Args:
        answer: of the class that the rule's argument is annotated with; None as long as there is none.
        rule: gives for an answer whether it is right, and a sentence with what was measured.

    Raises:
        InputError: an answer of another class, or a rule whose argument has no annotation.
    """
    hints = get_type_hints(rule) if callable(rule) else {}
    kind = next((hint for name, hint in hints.items() if name != "return"), None)
    if kind is None:
        raise InputError(f"expected rule, a function of one annotated answer, got {shown(rule)}: pass def rule(x: int)")
    wanted = _WORDS.get(kind, f"of the class {getattr(kind, '__name__', kind)}")
    if answer is None:
        print(f"Not answered yet: set answer = ..., {wanted}, and run this cell again.")
        return
    if not isinstance(answer, _ABSTRACT.get(kind, kind)) or (isinstance(answer, bool) and kind is not bool):
        raise InputError(f"expected answer, {wanted}, got {shown(answer)}: set answer = ..., {wanted}")
    right, measured = rule(answer)
    print(f"{'Right' if right else 'Not yet'}: {measured}")
