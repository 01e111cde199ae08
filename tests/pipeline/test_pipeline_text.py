"""Pipelines as text: what is printed reads back, and what cannot be read is told with its place."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.errors import OptionError
from graphprune.passes import Calibrate, Score, Select, all_passes
from graphprune.pipeline.options import options_of
from graphprune.pipeline.passes import Pass, parse_pipeline, print_pipeline


@dataclass(frozen=True)
class Tries(Pass):
    """Runs pipelines.

    Attributes:
        tries: Each of them.
        then: What follows
            on each.
        most: At most so many; none: all.
    """

    name: ClassVar[str] = "tries"
    tries: tuple[tuple[Pass, ...], ...] = ()
    then: tuple[Pass, ...] = ()
    most: int | None = None
    note: str | None = None
    widths: tuple[int, ...] = (1, 2)

    def run(self, state):
        return state


KNOWN = {**all_passes(), "tries": Tries}
PLAIN = {
    "bool": st.booleans(),
    "int": st.integers(),
    "float": st.floats(allow_nan=False),
    "str": st.text(max_size=12) | st.text(" {}|,;=\"'\\\nab", max_size=8) | st.just("none"),
}


@st.composite
def passes(draw, depth=2):
    known = KNOWN if depth else {name: cls for name, cls in KNOWN.items() if "passes" not in kinds(cls)}
    cls = known[draw(st.sampled_from(sorted(known)))]
    options = {}
    for option in options_of(cls).values():
        if option.required or draw(st.booleans()):
            options[option.name] = draw(value(option, depth))
    return cls(**options)


def kinds(cls):
    return {option.kind for option in options_of(cls).values()}


def value(option, depth):
    one = st.lists(passes(depth - 1), max_size=2).map(tuple) if option.kind == "passes" else PLAIN[option.kind]
    many = st.lists(one, max_size=3).map(tuple) if option.many else one
    return st.none() | many if option.optional else many


@settings(max_examples=150, deadline=None)
@given(st.lists(passes(), max_size=4).map(tuple))
def test_what_is_printed_reads_back(pipeline):
    assert parse_pipeline(print_pipeline(pipeline), KNOWN) == pipeline


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('calibrate{file="my stats.npz"}', Calibrate(file="my stats.npz")),
        ("calibrate{file='my stats.npz'}", Calibrate(file="my stats.npz")),
        (r'calibrate{file="a \"b\" \\ {c}|d,e=f"}', Calibrate(file=r'a "b" \ {c}|d,e=f')),
        ("calibrate{file=it's}", Calibrate(file="it's")),
        ("calibrate{file=a=b}", Calibrate(file="a=b")),
        ("calibrate {file=a; products=false}", Calibrate(products=False, file="a")),
        ("calibrate{}", Calibrate()),
        ('select{only="a b"|c|"d|e"}', Select(("a b", "c", "d|e"))),
        ("select{only=}", Select()),
        ('select{only=""}', Select(("",))),
        ("select{protect-ratio=0.5}", Select(protect_ratio=0.5)),
        ('tries{then="score{criterion=l1},verify" tries="verify"|"score{criterion=\'l1\'}"}', None),
    ],
)
def test_values(text, expected):
    (read,) = parse_pipeline(text, KNOWN)
    if expected is None:
        expected = Tries(
            (parse_pipeline("verify", KNOWN), (Score("l1"),)), parse_pipeline("score{criterion=l1},verify", KNOWN)
        )
    assert read == expected
    assert parse_pipeline(str(read), KNOWN) == (read,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score{seed=3", "cannot read '{seed=3' at letter 6 of pipeline 'score{seed=3'; expected '}' after the options of pass 'score'"),
        ('score{criterion="l1}', "cannot read '\"l1}' at letter 17 of pipeline 'score{criterion=\"l1}'; expected a closing \""),
        ('score{criterion="l1"x}', "cannot read 'x}' at letter 21 of pipeline 'score{criterion=\"l1\"x}'; expected a space, '|' or '}' after a value in quotes"),
        ("score{|}", "cannot read '|}' at letter 7 of pipeline 'score{|}'; expected an option, as in 'seed=3'"),
        ("score,,verify", "cannot read ',verify' at letter 7 of pipeline 'score,,verify'; expected the name of a pass"),
        ("score verify", "cannot read 'verify' at letter 7 of pipeline 'score verify'; expected ',' and another pass, or the end, after pass 'score'"),
        ("score{seed}", "unknown option 'seed' of pass 'score'; expected one of criterion, seed, blocks"),
        ("score{seed=1 seed=2}", "option 'seed' of pass 'score' is given twice; leave one of them out"),
        ("fold-constants{a=1}", "unknown option 'a=1' of pass 'fold-constants'; expected one of none"),
        ('tries{then="scor"}', "unknown pass 'scor' (did you mean 'score'?) in pipeline 'scor'; expected one of "),
        ("calibrate{products=yes}", "cannot read the value of 'calibrate{products=yes}'; expected a value of type bool"),
    ],
)  # fmt: skip
def test_malformed_texts_are_told_with_the_place(text, message):
    with pytest.raises(OptionError) as caught:
        parse_pipeline(text, KNOWN)
    assert str(caught.value).startswith(message)


@settings(max_examples=200, deadline=None)
@given(st.text("score{}=|,;\"'\\ ab-1", max_size=30))
def test_any_text_is_read_or_refused(text):
    try:
        read = parse_pipeline(text, KNOWN)
    except OptionError:
        return
    assert parse_pipeline(print_pipeline(read), KNOWN) == read


OLD = "fold-constants,{}score,allocate{{macs=0.5{}}},slice-groups"


@pytest.mark.parametrize(
    ("text", "select"),
    [
        (OLD.format("analyze{protect=fc|stem},", ""), Select((), ("fc", "stem"))),
        (OLD.format("analyze,", " only=head|channel"), Select(("head", "channel"))),
        (OLD.format("analyze{protect=fc},", " protect=fc|head only=kind:head"), Select(("kind:head",), ("fc", "head"))),
        (OLD.format("analyze,protect-sensitive{only=head ratio=0.5},", " only=head"), Select(("head",))),
        ('analyze,score,meet-latency{passes="allocate{latency=0.5 only=a|b},slice-groups"}', Select(("a", "b"))),
    ],
)
def test_texts_of_before_there_was_a_selection(text, select):
    first, *rest = parse_pipeline(text, KNOWN)
    assert first == select
    assert not any(hasattr(each, "only") or hasattr(each, "protect") for each in rest)


def test_a_selection_is_said_once():
    with pytest.raises(OptionError) as caught:
        parse_pipeline("analyze,protect-sensitive{only=a},allocate{only=b}", KNOWN)
    assert str(caught.value) == (
        "'allocate{only=b}' selects other groups than a pass before it; say it once: 'select{only=b}'"
    )
    with pytest.raises(OptionError) as caught:
        parse_pipeline("select{only=a},analyze,allocate{protect=b}", KNOWN)
    assert str(caught.value) == "the pipeline says 'protect=b' beside 'select'; say it there"


def test_options_are_data():
    found = options_of(Tries)
    assert [(each.name, each.type, each.default, each.doc) for each in found.values()] == [
        ("tries", "passes, ...", (), "Each of them."),
        ("then", "passes", (), "What follows on each."),
        ("most", "int or none", None, "At most so many; none: all."),
        ("note", "str or none", None, ""),
        ("widths", "int, ...", (1, 2), ""),
    ]


@pytest.mark.parametrize("cls", all_passes().values(), ids=lambda cls: cls.name)
def test_every_option_of_every_pass_has_a_sentence(cls):
    assert cls.__doc__
    assert [name for name, option in options_of(cls).items() if not option.doc.endswith(".")] == []


def test_a_type_that_no_text_can_say_is_told():
    @dataclass(frozen=True)
    class Odd(Pass):
        name: ClassVar[str] = "odd"
        what: dict[str, int] | None = None

        def run(self, state):
            return state

    with pytest.raises(TypeError, match=r"^option 'what' of pass 'odd' is of type .*, which no text can say$"):
        str(Odd())
