"""Recipes: every way in gives the same value, every way out leads back, and what is wrong is refused when it is made."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphprune as gp
from graphprune.early import flattened
from graphprune.errors import GraphpruneError, OptionError, TargetError
from graphprune.passes import Allocate, Analyze, FoldConstants, RemoveDeadNodes, Score, SliceGroups, Verify
from graphprune.pipeline.passes import Pass
from graphprune.recipe import RECIPES, VERSION, Recipe, recipe_options
from graphprune.recipe.options import attributes, first_sentence, option, options_in, plain
from graphprune.recipe.signature import takes_recipe

OPTIONS = {each.keyword: each for each in recipe_options()}

# -- there and back ------------------------------------------------------------------------------------------------

LETTERS = st.characters(exclude_categories=["Cs"])
SELECTORS = st.text(LETTERS).filter(lambda text: not text.startswith("kind:"))
TARGETS = st.sampled_from(["macs=0.5", "params=2M", "bytes=60%", "latency=5ms", "macs=1e9", "bytes=0.4kib"])
UNITS = st.lists(st.integers(0, 2**20), min_size=1, max_size=4, unique=True) | st.integers(1, 2**20)
DEMANDS = st.dictionaries(st.text(LETTERS, min_size=1), UNITS, max_size=3) | st.sampled_from(
    ["a.b=0-3,7", ["c=count:2"]]
)
SHAPES = st.dictionaries(st.sampled_from(["hidden_size", "text_config.num_layers"]), st.integers(1, 2**20))
VALUES = {
    "shape_target": SHAPES | st.sampled_from(["a=3,b.c=4", ["a=1"]]),
    "keep": DEMANDS,
    "remove": DEMANDS,
    "target": st.lists(TARGETS, max_size=3),
    "block_criterion": st.sampled_from(["l2", "random", "bi", "ablation"]),
    "blocks": st.sampled_from(["2", "25%", "0.25", 3, 0.5]),
    "layers": st.sampled_from(["1", "50%", 0.125]),
    "loss": st.sampled_from(["auto", "kl:1", ["mse"], {"scores": "bce", "boxes": "mse"}, ("cosine", "a=b=kl")]),
    "verify": st.sampled_from([True, False, "accept-unproven"]),
    "align": st.integers(1, 10**6),
    "min_units": st.integers(1, 10**6),
    "max_ratio": st.floats(0, 1, exclude_min=True),
    "protect_ratio": st.floats(0, 1, exclude_max=True),
    "seed": st.integers(0, 2**40),
    "recover": st.booleans(),
    "recover_steps": st.integers(0, 10**6),
    "recover_minutes": st.floats(0, 10**6),
    "recover_rate": st.floats(0, 1),
    "recover_rank": st.integers(1, 10**4),
}


def values_of(option):
    if option.shown.choices:
        return st.sampled_from(option.shown.choices)
    return VALUES[option.keyword] if option.keyword in VALUES else st.lists(SELECTORS, max_size=3)


KEYWORDS = st.fixed_dictionaries(
    {}, optional={each.keyword: values_of(each) for each in OPTIONS.values() if each.keyword != "pipeline"}
)
PIPELINES = st.sampled_from(
    [
        "fold-constants,analyze,score{criterion=l1 seed=3},allocate{macs=0.5},slice-groups,remove-dead-nodes",
        "analyze,score,allocate,slice-groups,verify{unproven=accept}",
    ]
)
BESIDE = st.fixed_dictionaries(
    {"pipeline": PIPELINES}, optional={name: values_of(OPTIONS[name]) for name in ("target", "loss", "verify", "seed")}
)


@settings(deadline=None)
@given(KEYWORDS | BESIDE)
def test_all_forms_lead_back(keywords):
    recipe = Recipe.of(**keywords)
    assert recipe == Recipe.of(**recipe.keywords())
    assert recipe == Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    text = recipe.to_toml()
    assert recipe == Recipe.from_toml(text)
    assert recipe.to_dict() == tomllib.loads(text)
    assert recipe == Recipe.read(recipe) == Recipe.read(recipe.to_dict())
    assert hash(recipe) == hash(Recipe.from_toml(text))


@settings(deadline=None)
@given(KEYWORDS, KEYWORDS)
def test_keywords_go_before_what_is_changed(first, second):
    both = {**first, **{name: value for name, value in second.items() if value is not None}}
    assert Recipe.of(**both) == Recipe.of(**first).changed(**second) == Recipe.read(Recipe.of(**first), **second)


@pytest.mark.parametrize("name", RECIPES)
def test_named_recipes(name, tmp_path):
    recipe = Recipe.named(name)
    assert recipe == Recipe.read(name) == Recipe.of(**RECIPES[name])
    (tmp_path / "own.toml").write_text(f"recipe = '{name}'\n[allocate]\nalign = 4\n")
    read = Recipe.read(tmp_path / "own.toml", criterion="l1")
    assert read.source == tmp_path / "own.toml"
    assert read == Recipe.of(**{**RECIPES[name], "align": 4, "criterion": "l1"})


def test_what_is_written_is_readable():
    recipe = Recipe.of(target={"macs": 0.5}, only=["channel", 'a "b"'], blocks=2, verify=False)
    assert recipe.to_toml() == (
        "version = 1\n"
        'targets = ["macs=0.5"]\n'
        "seed = 0\n"
        "\n[select]\nprotect_ratio = 0.0\n"
        'only = ["channel", "a \\"b\\""]\n'
        '\n[score]\nblock_criterion = "l2"\n'
        '\n[allocate]\nalign = 8\nmin_units = 1\nmax_ratio = 0.9\nblocks = "2"\n'
        "\n[proof]\nverify = false\n"
    )
    assert repr(recipe) == "Recipe(target=('macs=0.5',), only=('channel', 'a \"b\"'), blocks='2', verify=False)"


def test_values_have_one_form():
    assert Recipe.of(target={"macs": "50%"}) == Recipe.of(target="macs=0.5") == Recipe.of(target=["macs=.5"])
    assert Recipe.of(only="channel", align=8) == Recipe.of(only=("channel",))
    assert Recipe.of(blocks=2) == Recipe.of(blocks="2")
    assert Recipe.of(max_ratio=1).allocate.max_ratio == 1.0
    assert Recipe.of(criterion=None, target=None, pipeline=None) == Recipe()


# -- wrong ones ----------------------------------------------------------------------------------------------------

BESIDE_A_PIPELINE = "'criterion' has no effect beside a pipeline; give it to the pass that takes it, as in 'allocate{macs=0.5 align=16}'"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"criterion": "obss"}, "unknown criterion 'obss' (did you mean 'obs'?); expected one of "),
        ({"block_criterion": "l3"}, "unknown block criterion 'l3'; expected one of ablation, bi, l2, random"),
        ({"allocation": "isomorfic"}, "unknown allocation 'isomorfic' (did you mean 'isomorphic'?); expected one of "),
        ({"compensation": "affin"}, "unknown compensation 'affin' (did you mean 'affine'?); expected one of "),
        ({"max_ratio": 3}, "max_ratio is 3.0; expected a fraction above 0 and at most 1"),
        ({"max_ratio": float("nan")}, "max_ratio is nan; expected a number"),
        ({"protect_ratio": -1}, "protect_ratio is -1; expected a fraction of the groups, at least 0, below 1"),
        ({"align": 0}, "align is 0; expected 1 or more"),
        ({"align": "8"}, "align is '8'; expected a whole number"),
        ({"align": True}, "align is True; expected a whole number"),
        ({"align": 10**400}, "align is 1000000000000000"),
        ({"max_ratio": 10**400}, "max_ratio is 1000000000000000"),
        (
            {"blocks": "1e999"},
            "'1e999' blocks cannot be removed; expected a number of 1 or more, or a fraction up to 1",
        ),
        ({"min_units": 1.5}, "min_units is 1.5; expected a whole number"),
        ({"only": [3]}, "only is [3]; expected a text, or several"),
        ({"protect": {"a": 1}}, "protect is {'a': 1}; expected a text, or several"),
        ({"only": "kind:chanel"}, "'kind:chanel' (did you mean 'kind:channel'?) names no kind of unit; "),
        ({"blocks": "few"}, "cannot read 'few' blocks; expected a number like 2 or a fraction like 0.25"),
        ({"layers": "0"}, "'0' layers cannot be removed; expected a number of 1 or more, or a fraction up to 1"),
        ({"blocks": "150%"}, "'150%' blocks cannot be removed; expected a number of 1 or more, or a fraction up to 1"),
        ({"blocks": "nan"}, "'nan' blocks cannot be removed; expected a number of 1 or more, or a fraction up to 1"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"verify": "maybe"}, "unknown value 'maybe' of 'verify'; expected True, False or \"accept-unproven\""),
        ({"verify": []}, "unknown value '[]' of 'verify'; expected True, False or \"accept-unproven\""),
        ({"kriterion": "l1"}, "there is no option 'kriterion' (did you mean 'criterion' or 'block_criterion'?); "),
        ({"pipeline": "analyse"}, "unknown pass 'analyse' (did you mean 'analyze'?) in pipeline 'analyse'; "),
        ({"pipeline": "score,allocate{macs=0.5}", "criterion": "l1"}, BESIDE_A_PIPELINE),
        ({"pipeline": "analyze"}, "the pipeline made no plan; it needs 'analyze', 'score' and 'allocate'"),
        ({"pipeline": "analyze,allocate{macs=0.5}"}, "pass 'allocate' needs scores; put 'score' before it in the pipe"),
        ({"pipeline": "analyze,score{seed=x}"}, "cannot read the value of 'score{seed=x}'; expected a value of type "),
        ({"pipeline": "analyze,score,allocate{align=0}"}, "align is 0; expected 1 or more"),
        ({"pipeline": 3}, "pipeline is 3; expected a text, or passes"),
        ({"pipeline": ["analyze"]}, "pipeline is ['analyze']; expected a text, or passes"),
    ],
)
def test_wrong_values_are_refused_when_it_is_made(keywords, message):
    with pytest.raises(OptionError) as error:
        Recipe.of(**keywords)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("target", ["flops=0.5", 0.5, {"macs": -1}, ["macs"]])
def test_wrong_targets(target):
    with pytest.raises(TargetError):
        Recipe.of(target=target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[[", "the recipe is no TOML: "),
        ("version = 9", "the recipe has version 9, this graphprune reads version 1; update one of them"),
        ("recipe = 'flop'", "unknown recipe 'flop' (did you mean 'flap'?); expected one of "),
        ("score = 3", "'score' of the recipe is 3; expected a table of options"),
        ("criterion = 'l1'", "'criterion' of the recipe stands at the top; it belongs into [score]"),
        ("[refit]\nseed = 1", "'seed' of the recipe stands in [refit]; it belongs to the top, before the first table"),
        (
            "[select]\nprotekt = []",
            "there is no option 'protekt' (did you mean 'protect' or 'protect_ratio'?) in [select] of the recipe; ",
        ),
        ("[scor]\ncriterion = 'l1'", "there is no option 'scor' (did you mean 'score'?) at the top of the recipe; "),
        ("[allocate]\nalign = 'x'", "align is 'x'; expected a whole number"),
        ("pipeline = 'score{'", "cannot read "),
        ("[allocate]\nblocks = 2024-01-01", "blocks is datetime.date(2024, 1, 1); expected a text"),
    ],
)
def test_files_that_are_wrong(text, message, tmp_path):
    for source, where in ((text, "the recipe"), (tmp_path / "own.toml", f"recipe '{tmp_path / 'own.toml'}'")):
        (tmp_path / "own.toml").write_text(text)
        with pytest.raises(OptionError) as error:
            Recipe.from_toml(source)
        assert str(error.value).startswith(message.replace("the recipe", where))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("flop", "unknown recipe 'flop' (did you mean 'flap'?); expected one of default, "),
        ("none.toml", "cannot read recipe 'none.toml': No such file or directory; "),
        (Path("none"), "cannot read recipe 'none': No such file or directory; "),
        (3, "a 'int' is no recipe; give a Recipe, a name or the path of a file"),
        ({"version": "x"}, "the recipe has version 'x', this graphprune reads version 1; "),
        ({3: 4}, "there is no option '3' at the top of the recipe; "),
        ({"recipe": 3}, "unknown recipe '3'; "),
    ],
)
def test_what_is_no_recipe(source, message):
    with pytest.raises(OptionError) as error:
        Recipe.read(source)
    assert str(error.value).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [*OPTIONS, "targets", "version", "recipe", "select", "score", "allocate", "refit", "proof", "x"]
)
FORMS = st.dictionaries(NAMES, JSON | st.dictionaries(NAMES, JSON, max_size=3), max_size=4)


@settings(deadline=None)
@given(FORMS)
def test_whatever_a_plan_says_is_a_recipe_or_an_error(data):
    with contextlib.suppress(GraphpruneError):
        recipe = Recipe.from_dict(data)
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@settings(deadline=None)
@given(
    st.text(LETTERS)
    | st.builds("{} = {}\n[{}]\n{} = {}".format, NAMES, st.text(LETTERS), NAMES, NAMES, st.text(LETTERS))
)
def test_whatever_a_file_says_is_a_recipe_or_an_error(text):
    with contextlib.suppress(GraphpruneError):
        Recipe.from_toml(text)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match="is no TOML: "):
        Recipe.read(tmp_path / "own.toml")


@pytest.mark.parametrize(
    "source",
    ["--recipe=none.toml", "--recipe=flop", "--criterion=obss", "--align=0", "--pipeline=score,allocate{macs=0.5}"],
)
def test_errors_come_before_a_model_is_opened(source):
    """A factory that ends the process is never called."""
    code = "import sys; from graphprune.cli import main; main()"
    line = ("prune", "os:abort", "-o", "out.onnx", "--target", "macs=0.5", source)
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# -- what it does --------------------------------------------------------------------------------------------------


def names(passes):
    return [each.name for each in passes]


def test_the_passes_of_the_default():
    plain_ = Recipe.of(target="macs=0.5").pipeline()
    assert names(plain_) == [
        "fold-constants", "analyze", "score", "allocate", "slice-groups", "remove-blocks", "remove-dead-nodes", "verify"
    ]  # fmt: skip
    measured = Recipe.of(target="macs=0.5").pipeline(calibrated=True, measurable=True)
    assert {"calibrate", "measure-losses", "compensate"} <= set(names(measured))
    assert next(each for each in flattened(measured) if isinstance(each, Allocate)).allocation == "measured"
    assert next(each for each in measured if isinstance(each, Score)).criterion == "obs"
    unmeasurable = Recipe.of(target="macs=0.5").pipeline(calibrated=True)
    assert next(each for each in unmeasurable if isinstance(each, Allocate)).allocation == "isomorphic"
    told = Recipe.of(target="macs=0.5", allocation="dp").pipeline(calibrated=True, measurable=True)
    assert [each.allocation for each in told if isinstance(each, Allocate)] == ["dp"]


def test_passes_of_the_users_take_the_target():
    given = (FoldConstants(), Analyze(), Score("l1"), Allocate(), SliceGroups(), RemoveDeadNodes())
    recipe = Recipe.of(pipeline=given, target="macs=0.5")
    assert recipe.pipeline() == (*given[:3], Allocate(("macs=0.5",)), *given[4:])
    own = Recipe.of(pipeline=(*given[:3], Allocate(("params=0.4",)), *given[4:]), target="macs=0.5")
    assert own.pipeline()[3] == Allocate(("params=0.4",))


def test_options_reach_their_passes():
    recipe = Recipe.of(
        target="params=0.5", criterion="random", allocation="uniform", align=4, min_units=2, max_ratio=0.5,
        blocks="2", remove_blocks="layers.1", block_criterion="random", seed=7, verify="accept-unproven",
    )  # fmt: skip
    passes = {type(each): each for each in recipe.pipeline()}
    assert passes[Score] == Score("random", 7, "random")
    assert passes[Verify] == Verify(7, "accept")
    allocate = passes[Allocate]
    assert (allocate.align, allocate.min_units, allocate.max_ratio) == (4, 2, 0.5)
    assert (allocate.allocation, allocate.blocks, allocate.remove) == ("uniform", "2", ("layers.1",))


def test_nothing_says_what_remains():
    with pytest.raises(TargetError, match="^no target given; "):
        Recipe().pipeline()
    assert names(Recipe.of(blocks=1).pipeline())


def test_a_pass_of_the_users_own():
    class Own(Pass):
        name = "own"

        def run(self, state):
            return state

    recipe = Recipe.of(pipeline=[Own()])
    assert recipe.passes == (Own(),)
    with pytest.raises(OptionError, match="unknown pass 'own'"):
        Recipe.from_dict(recipe.to_dict())


# -- options are said once -----------------------------------------------------------------------------------------


def test_every_option_has_a_text_and_a_keyword_of_its_own():
    assert len(OPTIONS) == len(recipe_options())
    for each in OPTIONS.values():
        assert each.text, each.keyword
        assert first_sentence(each.text).endswith("."), each.keyword
        assert each.kind == tuple[str, ...] or each.default is None or each.keyword in ("pipeline",) or each.help()


def test_sections_hold_nothing_but_options():
    for part in dataclasses.fields(Recipe):
        default = part.default
        if dataclasses.is_dataclass(default):
            assert {each.field for each in options_in(type(default))} == {f.name for f in dataclasses.fields(default)}
            assert set(attributes(type(default))) == {f.name for f in dataclasses.fields(default)}


def test_the_help_says_choices_defaults_and_repeats():
    assert OPTIONS["align"].help() == "Widths stay multiples of this where the width allows. Default: 8."
    assert OPTIONS["compensation"].help() == (
        "How what was lost is made good: none, mean, ols, affine, bn. Default: affine with calibration data, else none."
    )
    assert OPTIONS["remove_blocks"].name == "remove-block"
    assert OPTIONS["remove_blocks"].help().endswith("(layers.3). Repeatable.")
    assert "`" not in "".join(each.help() for each in OPTIONS.values())


def test_texts_of_bases_and_marks():
    @dataclasses.dataclass(frozen=True)
    class First:
        """One.

        Attributes:
            a: The :class:`~x.A` of ``it``. And more.

                A paragraph.
            b: Short

        Note: not an entry.
        """

        a: int = option(1)
        b: int = 2

    @dataclasses.dataclass(frozen=True)
    class Second(First):
        """Two.

        Attributes:
            c: Own.
        """

        c: int = option(3)

    assert dict(attributes(Second))["a"].startswith("The :class:`~x.A` of ``it``. And more.")
    assert [each.keyword for each in options_in(Second)] == ["a", "c"]
    assert plain(first_sentence(options_in(Second)[0].text)) == "The x.A of it."


def test_the_signature_of_a_wrapper_follows():
    import inspect

    @takes_recipe(without=("seed",))
    def wrapper(model, *, recipe=None, target=None, **keywords):
        """Prunes.

        Args:
            model: A model.
            **keywords: Those of a recipe,
                see there.

        Returns:
            Nothing.
        """

    shown = inspect.signature(wrapper).parameters
    assert list(shown) == ["model", "recipe", "target", *(name for name in OPTIONS if name not in ("seed", "target"))]
    assert {name: shown[name].default for name in ("align", "criterion")} == {"align": 8, "criterion": None}
    assert "        align: Widths stay multiples of this where the width allows.\n" in wrapper.__doc__
    assert "keywords" not in wrapper.__doc__
    with pytest.raises(
        OptionError, match=r"^there is no option 'algin' \(did you mean 'align'\?\); expected one of model, "
    ):
        wrapper(1, algin=3)
    assert list(inspect.signature(takes_recipe(only=("align", "seed"))(wrapper)).parameters)[-2:] != ["align", "seed"]
    assert wrapper.__doc__.rstrip().endswith("Returns:\n            Nothing.")


# -- in a plan -----------------------------------------------------------------------------------------------------


def test_a_plan_holds_it(tmp_path):
    recipe = Recipe.of(target="macs=0.5", only="channel")
    plan = gp.PruningPlan("0" * 16, (), {}, recipe=recipe.to_dict())
    plan.save(tmp_path / "plan.json")
    assert Recipe.from_dict(gp.PruningPlan.load(tmp_path / "plan.json").recipe) == recipe
    data = plan.to_dict()
    del data["recipe"]
    assert gp.PruningPlan.from_dict(data).recipe == {}
    with pytest.raises(GraphpruneError, match="the plan is malformed"):
        gp.PruningPlan.from_dict({**data, "recipe": 3})
    assert recipe.to_dict()["version"] == VERSION
