"""The text form, the options of a pass, and running a pipeline."""

from __future__ import annotations

import contextlib
import re
from typing import Any, ClassVar, Literal, final

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from compressor import discover
from compressor.data import open_samples
from compressor.errors import DataError, OptionError
from compressor.pipeline import Change, Context, Pass, Pipeline


@final
class Every(Pass):
    """One option of every kind."""

    name: ClassVar[str] = "every"
    prepared: ClassVar[bool] = False

    number: float = Field(0.5, ge=-1e300, le=1e300)
    count: int = Field(3, ge=-10, le=10**18)
    flag: bool = False
    text: str = "a"
    choice: Literal["one", "two"] = "one"
    either: Literal["auto"] | bool = "auto"
    maybe: int | None = None
    words: tuple[str, ...] = ()

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Name the model."""
        model.graph.name = f"{model.graph.name}+"
        return Change(touched=("graph",), figures={"count": self.count})


@final
class Plain(Pass):
    """No options; wants the prepared model and calibration samples."""

    name: ClassVar[str] = "plain-2"
    needs: ClassVar[tuple[Literal["calibration", "data", "train"], ...]] = ("calibration",)

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Do nothing."""
        return Change()


@final
class Demanding(Pass):
    """An option without a default, and a rule over two."""

    name: ClassVar[str] = "demanding"
    low: int
    high: int = 5

    @model_validator(mode="after")
    def _ordered(self) -> Demanding:
        if self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")
        return self

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Do nothing."""
        return Change()


KNOWN: dict[str, type[Pass]] = {"every": Every, "plain-2": Plain, "demanding": Demanding}


@pytest.fixture(autouse=True, scope="module")
def _local_passes() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discover, "find", KNOWN.__getitem__)
        yield


def only(text: str) -> Pass:
    (found,) = Pipeline.parse(text)
    return found


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "number": st.floats(-1e300, 1e300),
        "count": st.integers(-10, 10**18),
        "flag": st.booleans(),
        "text": st.text(),
        "choice": st.sampled_from(["one", "two"]),
        "either": st.sampled_from(["auto", True, False]),
        "maybe": st.none() | st.integers(),
        "words": st.lists(st.text(max_size=5), max_size=3).map(tuple),
    },
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OPTIONS, max_size=3))
def test_what_is_written_is_read_back(options: list[dict[str, Any]]) -> None:
    pipeline = Pipeline(*(Every(**o) for o in options), Plain())
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert hash(Pipeline.parse(str(pipeline))) == hash(pipeline)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="every{}[]()='\", \n#\\0123456789-number", max_size=40) | st.text(max_size=20))
def test_any_text_is_read_or_refused_by_an_option_error(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discover, "find", lambda name: KNOWN.get(name, Every))
        with contextlib.suppress(OptionError):
            Pipeline.parse(text)


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        pytest.param("every{choice=two}", "choice", "two", id="bare word"),
        pytest.param("every{text=a-b_c}", "text", "a-b_c", id="bare word with a dash"),
        pytest.param("every{text='a, {b} #c'}", "text", "a, {b} #c", id="comma, brace and hash in quotes"),
        pytest.param('every{text="it\'s"}', "text", "it's", id="the other quote"),
        pytest.param(r"every{text='a\'}b'}", "text", "a'}b", id="escaped quote"),
        pytest.param("every{number=-2.5e-3}", "number", -0.0025, id="negative"),
        pytest.param("every{number=2}", "number", 2.0, id="an int for a float"),
        pytest.param("every{words=('a',)}", "words", ("a",), id="tuple of one"),
        pytest.param("every{words='a*'}", "words", ("a*",), id="one text for a tuple"),
        pytest.param("every{flag=true}", "flag", True, id="true as a shell writes it"),
        pytest.param("every{words=['a b', '](']}", "words", ("a b", "]("), id="list becomes tuple"),
        pytest.param("every{words=()}", "words", (), id="empty tuple"),
        pytest.param("every{maybe=None}", "maybe", None, id="None"),
        pytest.param("every{either=True}", "either", True, id="one side of a union"),
        pytest.param("every { count=7 }", "count", 7, id="spaces"),
        pytest.param("every{number=1,count=7}", "count", 7, id="comma between options"),
        pytest.param("every{number=1, count=7,}", "count", 7, id="trailing comma"),
        pytest.param("# first\nevery{ # why\n  count=7\n}\n# end", "count", 7, id="comments and newlines"),
        pytest.param("every{text=x#y\n}", "text", "x", id="a comment ends a bare word"),
    ],
)
def test_reads(text: str, option: str, value: object) -> None:
    assert getattr(only(text), option) == value


def test_passes_stand_behind_commas_or_on_lines_of_their_own() -> None:
    lines = Pipeline.parse("every{count=1}\nplain-2\n\n every")
    assert (
        lines == Pipeline.parse("every{count=1},plain-2,every") == Pipeline(Every(count=1), Plain(), Every())
    )
    assert len(lines) == 3
    assert Pipeline.parse("  # nothing\n") == Pipeline()


def test_writes_every_option_with_its_default() -> None:
    assert str(Every(count=1)) == (
        "every{number=0.5 count=1 flag=False text='a' choice='one' either='auto' maybe=None words=()}"
    )
    assert str(Pipeline(Plain(), Plain())) == "plain-2,plain-2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "every{count=1 count=2}",
            "Pipeline: option 'count' of every is given twice at column 20, before '=2}'.",
        ),
        ("every{count=1", "Pipeline: expected an option of every, or '}' at the end of 'every{count=1'."),
        ("every{words=('a'", "Pipeline: the bracket is not closed at column 13, before \"('a'\"."),
        ("every{text='a}", 'Pipeline: the quote is not closed at column 12, before "\'a}".'),
        ("every{count}", "Pipeline: expected '=' after 'count' at column 12, before '}'."),
        ("every{count=}", "Pipeline: expected a value at column 13, before '}'."),
        ("every{count=\n}", "Pipeline: expected a value at the end of 'every{count='."),
        ("every}", "Pipeline: expected a pass name at column 6, before '}'."),
        ("every{count=1}}", "Pipeline: expected a pass name at column 15, before '}'."),
        (
            "every{text=*.w}",
            "Pipeline: '*.w' is not a Python literal at column 12, before '*.w}'. Put it in quotes: '*.w'.",
        ),
        (
            "every{text=[{[]:1}]}",
            "Pipeline: '[{[]:1}]' is not a Python literal at column 12, before '[{[]:1}]}'. Put ",
        ),
        (
            "every,\nevery{\n  3=4}",
            "Pipeline: expected an option of every, or '}' at line 3, column 3, before '3=4}'.",
        ),
    ],
)
def test_points_at_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}"):
        Pipeline.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coutn": 1}, "every: no option 'coutn'. Did you mean 'count'?"),
        ({"number": "0.5"}, "every: option 'number' must be a valid number, got '0.5'."),
        ({"number": True}, "every: option 'number' must be a valid number, got True."),
        ({"number": float("nan")}, "every: option 'number' must be a finite number, got nan."),
        ({"count": 1.0}, "every: option 'count' must be a valid integer, got 1.0."),
        ({"count": True}, "every: option 'count' must be a valid integer, got True."),
        ({"count": -11}, "every: option 'count' must be greater than or equal to -10, got -11."),
        ({"flag": 1}, "every: option 'flag' must be a valid boolean, got 1."),
        ({"choice": "three"}, "every: option 'choice' must be one of 'one' or 'two', got 'three'."),
        ({"either": 5}, "every: option 'either' must be 'auto' or a valid boolean, got 5."),
        ({"words": 5}, "every: option 'words' must be a valid tuple, got 5."),
        ({"words": (1,)}, "every: option 'words' must be a valid string, got 1."),
    ],
)
def test_refuses_a_bad_option_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Every(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Plain, {"x": 1}, "plain-2: no option 'x'. It has no options."),
        (Demanding, {}, "demanding: option 'low' is required; it has no default."),
        (Demanding, {"low": 9}, "demanding: low must not be above high, got 9 and 5."),
    ],
)
def test_refuses_what_does_not_fit_a_pass(cls: type[Pass], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        cls(**options)
    assert str(caught.value) == message


def test_a_pass_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Every().count = 4  # type: ignore[misc]


def test_refuses_text_where_a_pass_belongs() -> None:
    with pytest.raises(
        OptionError, match=r"Pipeline takes passes, got 'every'\. Text is read by Pipeline\.parse\."
    ):
        Pipeline("every")  # type: ignore[arg-type]


def test_asks_for_missing_data_before_any_pass_runs(tiny_mlp: ir.Model) -> None:
    said: list[str] = []
    context = Context(progress=lambda what, done, total: said.append(what))
    with pytest.raises(
        DataError, match=r"^plain-2 needs calibration samples\. Give --calibration FILE\.npz, or calib"
    ):
        Pipeline(Every(), Plain()).run(tiny_mlp, context)
    assert not said


def test_reports_one_change_per_pass_and_leaves_the_input_alone(tiny_mlp: ir.Model) -> None:
    before = ir.to_proto(tiny_mlp).SerializeToString(deterministic=True)
    samples = open_samples({"x": np.zeros((2, 4), np.float32)}, tiny_mlp, "calibration")
    made = Pipeline(Every(count=4), Plain()).run(tiny_mlp, Context(calibration=samples))
    assert [c.recipe for c in made.changes] == [str(Every(count=4)), "prepare", "plain-2"]
    assert all(c.seconds >= 0 for c in made.changes)
    assert made.changes[0].figures == {"count": 4}
    assert made.pipeline == Pipeline(Every(count=4), Plain())
    assert ir.to_proto(tiny_mlp).SerializeToString(deterministic=True) == before


def test_an_empty_pipeline_changes_nothing(tiny_mlp: ir.Model) -> None:
    made = Pipeline().run(tiny_mlp, Context())
    assert ir.to_proto(made.model) == ir.to_proto(tiny_mlp)
    assert made.changes == ()


def test_a_value_may_be_a_dictionary() -> None:
    from compressor.language import read

    (_, options), (name, _) = read("finetune{lr_for={'a*': 0.5, 'b}': 2} epochs=1},optimize")
    assert options == {"lr_for": {"a*": 0.5, "b}": 2}, "epochs": 1}
    assert name == "optimize"
