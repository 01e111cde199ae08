"""Passes and pipelines: before and expected."""

import numpy as np
import pytest
from graphs import RESIDUAL, gqa_attention

from graphprune.analysis.groups import analyze_graph
from graphprune.errors import OptionError, ProofError
from graphprune.ir.text import parse_graph
from graphprune.passes import (
    Allocate,
    Analyze,
    FoldConstants,
    ProtectSensitive,
    RemoveDeadNodes,
    Score,
    Select,
    SliceGroups,
    Verify,
    all_passes,
)
from graphprune.passes.slice_groups import slice_edits
from graphprune.pipeline.passes import parse_pipeline
from graphprune.proof.compare import compare, require
from graphprune.proof.masks import masks


def test_slice_edits_of_a_residual_block():
    analysis = analyze_graph(parse_graph(RESIDUAL))
    edits = slice_edits(analysis, {analysis.groups[1].factor: np.array([0, 3, 7])})
    assert str(edits) == "take a.weight axis 0: [0, 3, 7]\ntake b.weight axis 1: [0, 3, 7]"
    assert edits.shapes == {
        "a.weight": (3, 16, 1, 1),
        "b.weight": (16, 3, 1, 1),
        "a": (2, 3, 8, 8),
        "r": (2, 3, 8, 8),
    }


def test_slice_edits_rewrite_sizes_and_keep_the_scale():
    analysis = analyze_graph(gqa_attention())
    kinds = {group.kind: group.factor for group in analysis.groups}
    edits = slice_edits(analysis, {kinds["kv-group"]: np.array([1]), kinds["qk-dim"]: np.arange(8)})
    assert [str(edit) for edit in (*edits.sizes, *edits.pins)] == [
        "set view1.size[2] = 4 (was 8)",
        "set view1.size[3] = 8 (was 16)",
        "set view4.size[2] = 1 (was 2)",
        "set view4.size[3] = 8 (was 16)",
        "set view7.size[2] = 1 (was 2)",
        "set view11.size[2] = 64 (was 128)",
        "pin sdpa9.scale = 0.25",
    ]


def test_a_permutation_changes_no_size():
    analysis = analyze_graph(gqa_attention())
    edits = slice_edits(analysis, {g.factor: np.random.default_rng(0).permutation(g.size) for g in analysis.groups})
    assert edits.shapes == {}
    assert edits.sizes == ()
    assert edits.pins == ()
    assert set(edits.slices) == {"wq", "wk", "wv", "wo"}


def test_a_plan_that_keeps_everything_is_the_identity():
    analysis = analyze_graph(gqa_attention())
    edits = slice_edits(analysis, {group.factor: np.arange(group.size) for group in analysis.groups})
    assert edits.shapes == {}
    for axes in edits.slices.values():
        for index in axes.values():
            assert index.tolist() == list(range(len(index)))


def test_masks_name_every_value_that_loses_positions():
    analysis = analyze_graph(parse_graph(RESIDUAL))
    found = masks(analysis, {analysis.groups[1].factor: np.arange(20)})
    assert {name: {axis: int(mask.sum()) for axis, mask in axes.items()} for name, axes in found.items()} == {
        "a.weight": {0: 20},
        "b.weight": {1: 20},
        "a": {1: 20},
        "r": {1: 20},
    }


# -- comparing ---------------------------------------------------------------------------------------------------


def f32(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("expected", "got", "difference"),
    [
        ({"y": f32(1, 2, 4)}, {"y": f32(1, 2, 4)}, 0.0),
        ({"y": f32(1, 2, 4)}, {"y": f32(1, 2, 3)}, 0.25),
        ({"y": f32(0, 0)}, {"y": f32(0, 2)}, 2.0),
        ({"y": f32(1, np.inf)}, {"y": f32(1, np.inf)}, 0.0),
        ({"y": f32(1, 2)}, {"y": f32(1, np.nan)}, np.inf),
        ({"y": f32(1, np.inf)}, {"y": f32(1, 5)}, np.inf),
        ({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, np.inf),
        ({"y": f32(1, 2)}, {"y": f32(1)}, np.inf),
        ({"y": f32(1, 2)}, {}, np.inf),
    ],
)
def test_compare_takes_the_largest_relative_difference(expected, got, difference):
    check = compare("masked", expected, got)
    assert check.difference == pytest.approx(difference)
    assert (check.difference <= check.tolerance) == (difference == 0.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_masks_write_in_place_of_infinity_is_no_scale(dtype):
    hidden = np.finfo(dtype).min
    logits = np.array([hidden, 1, 2], dtype)
    check = compare("masked", {"y": logits}, {"y": np.array([hidden, 1, 1.5], dtype)})
    assert (check.difference, check.where) == (pytest.approx(0.25), "output 'y' at [2]")
    assert compare("masked", {"y": logits}, {"y": np.array([-1, 1, 2], dtype)}).difference > 1e4
    double = np.array([np.finfo(np.float32).min, 1, 2])
    assert compare("masked", {"y": double}, {"y": np.add(double, [0, 0, 0.5])}).difference == pytest.approx(0.25)


def test_a_failed_check_is_an_error():
    with pytest.raises(ProofError) as error:
        require((compare("masked", {"y": f32(1, 2)}, {"y": f32(1, 1)}, note="a = b"),))
    assert str(error.value) == (
        "the proof 'masked' failed (a = b): largest relative difference 0.5 in output 'y' at [1], accepted 1e-05; "
        "nothing was written. Please report this with the model"
    )


# -- pipelines as text -------------------------------------------------------------------------------------------


def test_pipeline_as_text():
    text = "fold-constants,analyze{protect=fc|stem},score{criterion=l1},allocate{macs=0.5 align=16},slice-groups,verify"
    passes = parse_pipeline(text, all_passes())
    assert passes == (
        Select(protect=("fc", "stem")),
        FoldConstants(),
        Analyze(),
        Score("l1"),
        Allocate(("macs=0.5",), align=16),
        SliceGroups(),
        Verify(),
    )


def test_passes_print_as_they_are_written():
    passes = (Select(protect=("fc",)), Analyze(), Score("l1", 3), ProtectSensitive(0.3, (0.5, 0.75)), RemoveDeadNodes())
    text = ",".join(map(str, passes))
    assert text == (
        "select{protect=fc},analyze,score{criterion=l1 seed=3},protect-sensitive{ratio=0.3 ratios=0.5|0.75},remove-dead-nodes"
    )
    assert parse_pipeline(text, all_passes()) == passes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "analyse",
            "unknown pass 'analyse' (did you mean 'analyze'?) in pipeline 'analyse'; expected one of select, fold-constants, analyze, calibrate, score, "
            "protect-sensitive, measure-losses, fit-shape, find-dead, allocate, choose-allocation, exchange-units, slice-groups, remove-blocks, remove-dead-nodes, verify, fold-dead, compensate, "
            "meet-latency, check-export, measure-latency, rebuild-module, recover, evaluate",
        ),
        (
            "score{kriterion=l1}",
            "unknown option 'kriterion=l1' (did you mean 'criterion=l1'?) of pass 'score'; expected one of criterion, seed, blocks",
        ),
        ("score{seed=x}", "cannot read the value of 'score{seed=x}'; expected a value of type int"),
        (
            "score}",
            "cannot read '}' at letter 6 of pipeline 'score}'; expected ',' and another pass, or the end, after pass 'score'",
        ),
    ],
)
def test_bad_pipelines(text, message):
    with pytest.raises(OptionError) as error:
        parse_pipeline(text, all_passes())
    assert str(error.value) == message


def test_the_package_has_one_name():
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[2] / "passes" / "__init__.py"
    spec = importlib.util.spec_from_file_location("passes", path)
    with pytest.raises(ImportError, match="^this package is 'graphprune.passes', it was imported as 'passes'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
