"""Texts of before are read where an option has another name now."""

import pytest

from graphprune.errors import OptionError
from graphprune.passes import Calibrate, ChooseAllocation, Compensate, all_passes
from graphprune.pipeline.text import parse_pipeline, print_pipeline


@pytest.mark.parametrize(
    ("before", "now", "cls"),
    [
        ("compensate{rung=mean}", "compensate{method=mean}", Compensate),
        ("calibrate{apart=true}", "calibrate{holdout=true}", Calibrate),
        (
            'choose-allocation{candidates="allocate{macs=0.5}" rung=ols}',
            'choose-allocation{candidates="allocate{macs=0.5}" method=ols}',
            ChooseAllocation,
        ),
    ],
)
def test_old_names_of_options(before, now, cls):
    (old,), (new,) = (parse_pipeline(text, all_passes()) for text in (before, now))
    assert isinstance(old, cls)
    assert old == new
    assert print_pipeline((old,)) == print_pipeline((new,))
    assert {*cls.renamed.values()} == {name for name in ("method", "holdout") if f"{name}=" in print_pipeline((old,))}


def test_both_names_at_once():
    with pytest.raises(OptionError, match="^option 'method' of pass 'compensate' is given twice"):
        parse_pipeline("compensate{rung=mean method=ols}", all_passes())
