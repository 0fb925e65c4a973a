"""A user's slips end in one error of the package at the call, which names the argument and the way out."""

import importlib
import pkgutil

import pytest
import slips

from seg4diff_tools.errors import Seg4DiffError

SLIPS = [
    pytest.param(call, pattern, id=f"{module.name}-{name}")
    for module in pkgutil.iter_modules(slips.__path__)
    for name, call, pattern in importlib.import_module(f"slips.{module.name}").SLIPS
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "pattern"), SLIPS)
def test_a_slip_is_one_error_at_the_call(tiny_backbone, call, pattern):
    with pytest.raises(Seg4DiffError, match=pattern):
        call(tiny_backbone)
