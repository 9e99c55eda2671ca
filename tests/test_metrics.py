import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import spearmanr
from sklearn.metrics import (
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    roc_auc_score,
    top_k_accuracy_score,
)

from compressor import metrics
from compressor.errors import DataError, OptionError
from compressor.statistics import Interval

Case = tuple[str, np.ndarray, np.ndarray]


def cases(samples: int = 300) -> list[Case]:
    """Each built-in metric with outputs and labels that it likes."""
    rng = np.random.default_rng(0)
    classes, binary = rng.integers(0, 8, samples), rng.integers(0, 2, samples)
    logits = rng.normal(size=(samples, 8)).astype(np.float32)
    logits[np.arange(samples), classes] += 1
    line = rng.normal(size=samples)
    image = rng.random((samples, 3, 4, 4)).astype(np.float32)
    noisy = image + rng.normal(0, 0.05, image.shape).astype(np.float32)
    tokens = rng.integers(0, 11, (samples, 6))
    tokens[::2, 4:] = -100
    return [
        ("top1", logits, classes),
        ("top5", logits, classes),
        ("f1", logits, classes),
        ("auc", (line + 2 * binary).astype(np.float32), binary),
        ("mse", noisy, image),
        ("mae", noisy, image),
        ("psnr", noisy, image),
        ("cosine", noisy, image),
        ("spearman", (line + rng.normal(size=samples))[:, None], line),
        ("perplexity", rng.normal(size=(samples, 6, 11)).astype(np.float32), tokens),
    ]


every_metric = pytest.mark.parametrize(("name", "output", "labels"), cases(), ids=[c[0] for c in cases()])


def worse(output: np.ndarray, amount: float = 1.0) -> np.ndarray:
    return output + (amount * np.random.default_rng(1).normal(size=output.shape)).astype(output.dtype)


def test_the_table_of_the_tests_holds_every_metric() -> None:
    assert (*(name for name, _, _ in cases()), "agreement") == metrics.names()


def test_values_are_those_of_scikit_learn_scipy_and_the_formulas() -> None:
    found = {name: metrics.score(name, [output], labels).value for name, output, labels in cases()}
    data = {name: (output, labels) for name, output, labels in cases()}
    logits, classes = data["top1"]
    scores, binary = data["auc"]
    noisy, image = data["mse"]
    ranks, line = data["spearman"]
    words, tokens = data["perplexity"]
    flat, truth = noisy.reshape(300, -1).astype(float), image.reshape(300, -1).astype(float)
    losses = -np.take_along_axis(log_softmax(words.astype(float), -1), np.maximum(tokens, 0)[..., None], -1)
    cosine = (flat * truth).sum(1) / np.linalg.norm(flat, axis=1) / np.linalg.norm(truth, axis=1)
    assert found == pytest.approx(
        {
            "top1": (logits.argmax(1) == classes).mean(),
            "top5": top_k_accuracy_score(classes, logits, k=5, labels=range(8)),
            "f1": f1_score(classes, logits.argmax(1), average="macro"),
            "auc": roc_auc_score(binary, scores),
            "mse": mean_squared_error(truth, flat),
            "mae": mean_absolute_error(truth, flat),
            "psnr": -10 * math.log10(mean_squared_error(truth, flat)),
            "cosine": cosine.mean(),
            "spearman": spearmanr(ranks[:, 0], line).statistic,
            "perplexity": math.exp(losses[..., 0][tokens != -100].mean()),
        },
        rel=1e-9,  # all of it is float64 arithmetic on the same float32 numbers
    )


@every_metric
def test_the_same_outputs_have_a_drop_of_zero(name: str, output: np.ndarray, labels: np.ndarray) -> None:
    found = metrics.compare(name, [output], [output.copy()], labels)
    assert found.drop.value == 0
    assert found.drop.low <= 0 <= found.drop.high
    assert found.before == found.after
    assert (found.metric, found.samples, found.verified) == (name, 300, "labels")


@every_metric
def test_a_worse_model_has_a_positive_drop_and_a_better_one_a_negative(
    name: str, output: np.ndarray, labels: np.ndarray
) -> None:
    bad = worse(output, 3.0)
    down, up = metrics.compare(name, [output], [bad], labels), metrics.compare(name, [bad], [output], labels)
    assert down.before is not None
    assert down.after is not None
    sign = 1 if down.higher_is_better else -1
    assert down.drop.value == pytest.approx(sign * (down.before.value - down.after.value), abs=1e-12)
    assert 0 < down.drop.low <= down.drop.value <= down.drop.high
    assert up.drop.low <= up.drop.value <= up.drop.high < 0
    assert down.higher_is_better is (name not in ("mse", "mae", "perplexity"))


@every_metric
def test_the_scores_of_a_comparison_are_those_of_each_model(
    name: str, output: np.ndarray, labels: np.ndarray
) -> None:
    found = metrics.compare(name, [output], [worse(output)], labels)
    assert found.before is not None
    assert found.before == metrics.score(name, [output], labels)
    assert found.before.low <= found.before.value <= found.before.high


@every_metric
def test_equal_seeds_give_equal_intervals(name: str, output: np.ndarray, labels: np.ndarray) -> None:
    first, again = (metrics.compare(name, [output], [worse(output)], labels, seed=3) for _ in range(2))
    assert first == again


@every_metric
def test_pairing_makes_the_interval_of_a_small_change_narrower_than_that_of_the_score(
    name: str, output: np.ndarray, labels: np.ndarray
) -> None:
    found = metrics.compare(name, [output], [worse(output, 0.01)], labels)
    assert found.before is not None
    assert found.drop.high - found.drop.low < found.before.high - found.before.low


@pytest.mark.parametrize("name", ["top1", "top5", "f1", "mse", "mae", "psnr", "cosine", "perplexity"])
def test_one_sample_gives_a_wide_interval(name: str) -> None:
    output, labels = next((o[:1], y[:1]) for n, o, y in cases() if n == name)
    found = metrics.compare(name, [output], [output], labels)
    assert found.before is not None
    assert found.before.high - found.before.low > 0.5
    assert found.drop.low < -0.5
    assert found.drop.high > 0.5


def test_the_drop_of_the_accuracy_is_covered_93_to_97_percent_of_the_time() -> None:
    rng, inside, zeros = np.random.default_rng(0), 0, np.zeros(150, dtype=np.int64)
    for _ in range(600):  # standard error 0.9 points
        kind = rng.choice(3, 150, p=[0.12, 0.06, 0.82])  # only before right, only after right, both
        before, after = (np.eye(2)[(kind == k).astype(int)] for k in (1, 0))
        drop = metrics.compare("top1", [before], [after], zeros).drop
        inside += drop.low <= 0.06 <= drop.high
    assert 0.93 <= inside / 600 <= 0.97


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("output", [[0.1, 0.6, 0.5, 0.9], [-3.0, 0.2, -0.1, 7.0]])
def test_one_column_is_cut_at_a_half_for_probabilities_and_at_zero_for_logits(
    shape: tuple[int, ...], output: list[float]
) -> None:
    column = np.array(output, dtype=np.float32).reshape(shape)
    assert metrics.score("top1", [column], np.array([0, 1, 0, 1])).value == 1.0
    assert metrics.score("f1", [column], np.array([0, 1, 0, 1])).value == 1.0


def test_the_original_decides_where_both_models_are_cut() -> None:
    before, after = np.array([0.1, 0.9, 0.2, 0.8]), np.array([-0.01, 1.01, 0.2, 0.8])
    assert metrics.compare("top1", [before], [after], np.array([0, 1, 0, 1])).drop.value == 0


def test_integer_outputs_are_class_ids() -> None:
    assert metrics.score("top1", [np.array([5, 7, 9])], np.array([5, 7, 8])).value == pytest.approx(2 / 3)


def test_two_columns_give_the_auc_of_their_difference_whether_logits_or_probabilities() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 50), rng.normal(size=(50, 2))
    probabilities = np.exp(log_softmax(logits, axis=1))
    found = [metrics.score("auc", [x], labels).value for x in (logits, probabilities)]
    assert found == pytest.approx([roc_auc_score(labels, probabilities[:, 1])] * 2, abs=1e-12)


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    equal = np.zeros((2, 9))
    assert metrics.score("top1", [equal], np.array([0, 1])).value == 0.5
    assert metrics.score("top5", [equal], np.array([4, 5])).value == 0.5


@pytest.mark.parametrize(("scale", "peak"), [(1.0, 1.0), (200.0, 255.0), (1000.0, 1000.0)])
def test_the_peak_of_psnr_follows_the_labels(scale: float, peak: float) -> None:
    labels = np.array([[0.0, 0.5, 1.0]]).T * scale
    assert metrics.score("psnr", [labels + 0.1], labels).value == pytest.approx(20 * math.log10(peak / 0.1))


def test_a_model_without_error_has_infinite_psnr_and_loses_infinitely() -> None:
    labels = np.random.default_rng(0).random((6, 3))
    found = metrics.compare("psnr", [labels], [labels + 0.1], labels)
    assert found.before == Interval(math.inf, math.inf, math.inf)
    assert found.drop.value == math.inf


def test_a_constant_output_has_no_rank_correlation() -> None:
    assert metrics.score("spearman", [np.ones(5)], np.arange(5)).value == 0.0


def test_infinite_outputs_count_as_the_largest_float32() -> None:
    largest = float(np.finfo(np.float32).max)
    assert metrics.score("mae", [np.array([np.inf, 0.0])], np.zeros(2)).value == pytest.approx(largest / 2)
    masked = np.array([[[0.0, -np.inf], [0.0, 0.0]]])
    assert metrics.score("perplexity", [masked], np.array([[0, -100]])).value == pytest.approx(1.0)
    assert metrics.score("perplexity", [masked], np.array([[1, -100]])).value == pytest.approx(math.exp(709))


def test_agreement_of_equal_outputs_is_complete() -> None:
    output = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    found = metrics.agreement([output], [output.copy()])
    assert list(found) == ["top1", "cosine", "sqnr"]
    assert (found["top1"].value, found["cosine"].value, found["sqnr"].value) == (1.0, 1.0, math.inf)
    assert 0.8 < found["top1"].low < 1


def test_agreement_follows_its_formulas() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    y = x + 0.5 * rng.normal(size=x.shape)
    found = metrics.agreement([x], [y])
    assert found["top1"].value == (x.argmax(1) == y.argmax(1)).mean()
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert found["cosine"].value == pytest.approx(cosine.mean())
    assert found["sqnr"].value == pytest.approx(10 * math.log10((x**2).sum() / ((x - y) ** 2).sum()))
    assert found["sqnr"].low < found["sqnr"].value < found["sqnr"].high


def test_outputs_that_are_no_classes_agree_by_cosine_and_sqnr_only() -> None:
    boxes = np.random.default_rng(0).random((5, 10, 4))
    assert list(metrics.agreement([boxes], [boxes])) == ["cosine", "sqnr"]
    found = metrics.compare(None, [boxes], [-boxes], None)
    assert found.after is not None
    assert found.after.value == pytest.approx(-1.0)
    assert found.drop.value == pytest.approx(2.0)


def test_zeros_agree_with_zeros_and_with_nothing_else() -> None:
    zeros, ones = np.zeros((2, 3, 1)), np.ones((2, 3, 1))
    same, other = metrics.agreement([zeros], [zeros]), metrics.agreement([zeros], [ones])
    assert (same["cosine"].value, same["sqnr"].value) == (1.0, math.inf)
    assert (other["cosine"].value, other["sqnr"].value) == (0.0, -math.inf)


def test_equal_infinities_agree_and_others_do_not() -> None:
    masked = np.array([[1.0, 2.0, -np.inf], [3.0, 1.0, -np.inf]])
    near = np.array([[1.0, 2.1, -np.inf], [3.0, 1.1, -np.inf]])
    found = metrics.agreement([masked], [near])
    assert found["sqnr"].value == pytest.approx(10 * math.log10(15 / 0.02))
    assert metrics.agreement([masked], [np.zeros((2, 3))])["cosine"].value == pytest.approx(0.0, abs=1e-30)


def test_without_labels_the_drop_is_one_minus_the_agreement() -> None:
    before = np.eye(4)
    after = before[[0, 1, 2, 0]]
    found = metrics.compare(None, [before], [after], None)
    assert found.after is not None
    assert (found.metric, found.verified, found.before, found.higher_is_better) == (
        "agreement",
        "agreement",
        None,
        True,
    )
    assert found.drop == Interval(0.25, 1 - found.after.high, 1 - found.after.low)


def test_complete_agreement_has_a_drop_of_zero_with_an_interval_that_holds_it() -> None:
    drop = metrics.compare("agreement", [np.eye(3)], [np.eye(3)], None).drop
    assert drop.value == drop.low == 0
    assert 0 < drop.high < 1


@pytest.mark.parametrize(
    ("shape", "labels", "metric"),
    [
        ((4, 3), None, "agreement"),
        ((4, 3), np.array([0, 1, 2, 0]), "top1"),
        ((4, 2), np.array([0, 1, 1, 0]), "top1"),
        ((4, 3), np.array([[0.0], [1.0], [2.0], [0.0]]), "top1"),
        ((4,), np.array([0, 1, 1, 0]), "auc"),
        ((4, 1), np.array([True, False, True, False]), "auc"),
        ((4, 1), np.array([1, 1, 1, 1]), "top1"),
        ((4, 1), np.array([0.5, 1.5, 2.0, 0.1]), "mse"),
        ((4,), np.array([10, 20, 30, 5]), "mse"),
        ((4, 3, 2, 2), np.zeros((4, 3, 2, 2), dtype=np.float32), "mse"),
        ((4, 6, 9), np.ones((4, 6), dtype=np.int64), "perplexity"),
    ],
)
def test_guesses_the_metric(shape: tuple[int, ...], labels: np.ndarray | None, metric: str) -> None:
    output = np.random.default_rng(0).normal(size=shape)
    assert metrics.default_metric([output], labels) == metric
    assert metrics.compare(None, [output], [output], labels).metric == metric


def test_does_not_guess_a_metric_for_one_hot_labels() -> None:
    with pytest.raises(
        DataError, match=r"No metric can be guessed for labels int64 \(3, 3\).*top1.*file.py:function"
    ):
        metrics.default_metric([np.zeros((3, 3))], np.eye(3, dtype=np.int64))


@pytest.mark.parametrize(
    ("name", "shape", "labels", "message"),
    [
        ("top1", (3, 4), None, "'top1' needs labels. Give them with the samples, or use 'agreement'"),
        ("top1", (3, 4), np.array([0, 1, 4]), "label 4 in row 2, but the model has 4 classes, 0 to 3"),
        ("top1", (3, 4), np.array([0, -1, 2]), "label -1 in row 1"),
        ("f1", (3, 4), np.array([0, 1.5, 2]), "label 1.5 in row 1"),
        ("top1", (3,), np.array([0, 1, 2]), "label 2 in row 2, but the model has 2 classes"),
        ("top1", (3, 4), np.array([0, 1]), r"labels of shape \(2,\) for 3 samples"),
        ("top1", (3, 4), np.array(1), r"labels of shape \(\) for 3 samples"),
        ("top1", (3, 4), np.eye(3), r"needs one class id per sample, got shape \(3, 3\)"),
        ("top1", (3, 4, 2), np.zeros(3), r"needs an output \[samples, classes\] or \[samples\]"),
        ("top1", (3, 4), np.array(["a", "b", "c"]), "labels are of type <U1. Give numbers"),
        ("top5", (3, 5), np.zeros(3), "with more than 5 classes"),
        ("auc", (3,), np.array([0, 1, 2]), "label 2 in row 2"),
        ("auc", (3,), np.array([1, 1, 1]), "needs samples of both classes; every label is 1"),
        ("auc", (3,), np.zeros((3, 2)), "one label per sample, 0 or 1"),
        ("auc", (3, 4), np.array([0, 1, 1]), r"\[samples, 1\] or \[samples, 2\], got shape \(3, 4\)"),
        ("mse", (3, 4), np.zeros((3, 5)), r"labels of the output's shape \(3, 4\), got shape \(3, 5\)"),
        ("mae", (3, 1), np.array([0, np.nan, 1]), "1 of 3 labels are NaN, first in row 1"),
        ("spearman", (3, 2), np.zeros((3, 2)), r"needs an output \[samples\] or \[samples, 1\]"),
        ("spearman", (3,), np.ones(3), "needs labels that differ"),
        ("perplexity", (3, 4), np.zeros((3, 4)), r"logits \[samples, tokens, vocabulary\]"),
        ("perplexity", (3, 4, 5), np.zeros((3, 5)), r"needs token ids \(3, 4\)"),
        ("perplexity", (3, 4, 5), np.full((3, 4), 5), "label 5 in row 0, but the model has 5 classes"),
        ("perplexity", (3, 4, 5), np.full((3, 4), -100), "every label is -100"),
    ],
)
def test_says_what_is_wrong_with_the_labels(
    name: str, shape: tuple[int, ...], labels: np.ndarray | None, message: str
) -> None:
    output = np.random.default_rng(0).normal(size=shape)
    for refuses in (
        lambda: metrics.check_labels(name, labels, [output]),
        lambda: metrics.score(name, [output], labels),
        lambda: metrics.compare(name, [output], [output], labels),
    ):
        with pytest.raises(DataError, match=message):
            refuses()


def test_a_class_id_of_an_integer_output_must_not_be_negative() -> None:
    with pytest.raises(DataError, match="label -2 in row 0, but the model has class ids from 0 on"):
        metrics.check_labels("top1", np.array([-2, 1]), [np.array([0, 1])])


@every_metric
def test_labels_that_fit_pass_the_check(name: str, output: np.ndarray, labels: np.ndarray) -> None:
    metrics.check_labels(name, labels, [output])
    metrics.check_labels("agreement", None, [output])


@pytest.mark.parametrize("metric", ["mse", "agreement"])
def test_nan_is_refused_with_the_model_and_the_rows(metric: str) -> None:
    good = np.zeros((5, 2))
    bad = good.copy()
    bad[[1, 3]] = np.nan
    with pytest.raises(
        DataError, match=r"The 'after' model gives NaN in 2 of 5 rows of output 0, first in row 1"
    ):
        metrics.compare(metric, [good], [bad], good)
    with pytest.raises(DataError, match="The 'before' model gives NaN"):
        metrics.compare(metric, [bad], [good], good)
    with pytest.raises(DataError, match="The model gives NaN"):
        metrics.score("mse", [bad], good)


@pytest.mark.parametrize("outputs", [[], [np.zeros((0, 3))], [np.array(1.0)]])
def test_no_samples_are_refused(outputs: list[np.ndarray]) -> None:
    with pytest.raises(DataError, match="gave no outputs to score"):
        metrics.score("top1", outputs, np.zeros(0))


def test_text_outputs_are_refused() -> None:
    with pytest.raises(DataError, match="output 0 is of type <U3; a metric needs numbers"):
        metrics.agreement([np.array(["cat"])], [np.array(["dog"])])


def test_outputs_of_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"differ in shape: \(3, 2\) before, \(2, 2\) after"):
        metrics.agreement([np.zeros((3, 2))], [np.zeros((2, 2))])


def test_an_unknown_metric_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        OptionError, match=r"No metric named 'top_1'. Did you mean 'top1'\?.*file.py:function"
    ):
        metrics.check_labels("top_1", None, [np.zeros((1, 2))])


def test_agreement_scores_no_single_model() -> None:
    with pytest.raises(OptionError, match="'agreement' compares two models and scores none"):
        metrics.score("agreement", [np.zeros((1, 2))], None)


CUSTOM = """
import numpy as np

def median_error(outputs, labels):
    return np.median(np.abs(outputs[1] - labels))

median_error.higher_is_better = False

def spread(outputs, labels):
    assert labels is None
    return float(outputs[0].std())

def text(outputs, labels):
    return "0.5"

def truth(outputs, labels):
    return True

def nothing(outputs, labels):
    return np.array(np.nan)
"""


@pytest.fixture
def custom(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(CUSTOM)
    return str(path)


def test_a_custom_metric_sees_all_outputs_and_says_which_way_is_better(custom: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=40)
    before = [np.zeros((40, 2)), labels + rng.normal(0, 0.1, 40)]
    after = [np.zeros((40, 2)), labels + rng.normal(0, 0.5, 40)]
    found = metrics.compare(f"{custom}:median_error", before, after, labels)
    assert found.before is not None
    assert found.before.value == np.median(np.abs(before[1] - labels))
    assert (found.higher_is_better, found.verified) == (False, "labels")
    assert 0 < found.drop.low < found.drop.value < found.drop.high
    assert found == metrics.compare(f"{custom}:median_error", before, after, labels)


def test_a_custom_metric_may_do_without_labels_and_is_better_when_higher(custom: str) -> None:
    found = metrics.compare(f"{custom}:spread", [np.arange(9.0)], [np.arange(9.0) / 2], None)
    assert (found.higher_is_better, found.verified) == (True, "agreement")
    assert found.drop.value == pytest.approx(np.arange(9.0).std() / 2)


def test_a_custom_metric_on_one_sample_allows_no_statement(custom: str) -> None:
    assert metrics.score(f"{custom}:spread", [np.ones(1)], None) == Interval(0.0, -math.inf, math.inf)


def test_a_custom_metric_may_live_in_a_module(custom: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(custom).parent))
    assert metrics.score("mine:spread", [np.arange(3.0)], None).value == np.arange(3.0).std()
    monkeypatch.delitem(sys.modules, "mine")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("text", "must return a float, got str '0.5'"),
        ("truth", "must return a float, got bool True"),
        ("nothing", "gives NaN on all 3 samples"),
        ("sprea", "no function 'sprea' in .* Did you mean 'spread'?"),
        ("np", "no function 'np' in"),
    ],
)
def test_a_custom_function_that_does_not_work_is_refused(custom: str, function: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        metrics.score(f"{custom}:{function}", [np.arange(3.0)], None)


def test_a_custom_metric_that_is_not_there_is_refused(tmp_path: Path) -> None:
    output = [np.zeros(3)]
    with pytest.raises(OptionError, match=r"there is no file 'none.py'"):
        metrics.score("none.py:f", output, None)
    with pytest.raises(OptionError, match="'no_such_module' cannot be imported: No module named"):
        metrics.score("no_such_module:f", output, None)
    for place in ("", ".x"):
        with pytest.raises(OptionError, match="cannot be imported"):
            metrics.score(f"{place}:f", output, None)
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(OptionError, match=r"broken.py' cannot be imported"):
        metrics.score(f"{tmp_path / 'broken.py'}:f", output, None)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(OptionError, match=r"no function 'f' in .* It has none"):
        metrics.score(f"{tmp_path / 'empty.py'}:f", output, None)


def test_labels_of_a_custom_metric_must_be_one_per_sample(custom: str) -> None:
    with pytest.raises(DataError, match=r"labels of shape \(2,\) for 3 samples"):
        metrics.check_labels(f"{custom}:spread", np.zeros(2), [np.zeros(3)])


def test_importing_the_metrics_loads_neither_scikit_learn_nor_scipy() -> None:
    import subprocess

    code = "import sys, compressor.metrics; sys.exit(bool({'sklearn', 'scipy'} & set(sys.modules)))"
    root = Path(metrics.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_unit_vectors_are_compared_by_cosine_and_not_as_classes() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 16))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    assert "top1" not in metrics.agreement([unit], [unit])
    assert "top1" in metrics.agreement([rows], [rows])
    assert metrics.compare(None, [unit], [-unit], None).drop.value == pytest.approx(2.0)
