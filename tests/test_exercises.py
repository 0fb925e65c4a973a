"""Exercises: one line for each kind of answer, and in every chapter at least two whose solutions are right."""

import json

import numpy as np
import pytest
from user_files import ROOT

from seg4diff_tools.errors import InputError
from seg4diff_tools.exercises import check

# chapter 15 is for looking around
CHAPTERS = [path for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.name[:2] != "15"]


def is_four(answer: int) -> tuple[bool, str]:
    return answer == 4, f"{answer} was measured."


def is_half(answer: float) -> tuple[bool, str]:
    return answer == 0.5, f"{answer:g} was measured."


@pytest.mark.parametrize(
    ("answer", "rule", "told"),
    [
        (4, is_four, "Right: 4 was measured."),
        (np.int64(4), is_four, "Right: 4 was measured."),
        (3, is_four, "Not yet: 3 was measured."),
        (0.5, is_half, "Right: 0.5 was measured."),
        (1, is_half, "Not yet: 1 was measured."),
        (None, is_four, "Not answered yet: set answer = ..., a whole number, and run this cell again."),
    ],
)
def test_an_answer_is_one_line(capsys, answer, rule, told):
    check(answer, rule)
    assert capsys.readouterr().out == f"{told}\n"


@pytest.mark.parametrize("answer", ["4", 4.0, True, [4]])
def test_an_answer_of_another_class_is_an_error(answer):
    with pytest.raises(InputError, match="expected answer, a whole number, got .*: set answer ="):
        check(answer, is_four)


def test_a_rule_says_what_it_takes():
    with pytest.raises(InputError, match="expected rule, a function of one annotated answer"):
        check(4, lambda answer: (True, ""))


def printed(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_exercises_and_their_solutions_are_right(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    tagged = {
        tag: [cell for cell in cells if tag in cell["metadata"].get("tags", ())] for tag in ("exercise", "solution")
    }
    assert len(tagged["exercise"]) >= 2
    assert len(tagged["solution"]) == len(tagged["exercise"])
    assert all(printed(cell).startswith("Not answered yet:") for cell in tagged["exercise"])
    assert all(printed(cell).startswith("Right:") for cell in tagged["solution"])
    assert all("hide-cell" in cell["metadata"]["tags"] for cell in tagged["solution"])
