"""Slips with exercises."""

from collections.abc import Callable
from typing import Any

from seg4diff_tools import exercises as typed

exercises: Any = typed


def _layer(answer: int) -> tuple[bool, str]:
    return answer == 4, f"layer {answer}."


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("answer-text", lambda b: exercises.check("4", _layer), "answer, a whole number, got '4': set answer"),
    ("rule-number", lambda b: exercises.check(4, 4), "rule, a function of one annotated answer, got 4: pass"),
]
