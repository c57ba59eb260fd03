"""Metric values worked out by hand, what is undefined, and the text report."""

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.metrics.classification import (
    Sums,
    classification_metrics,
    pearson,
    probabilities,
    sigmoid,
    softmax,
    spearman,
)
from jaxllm.metrics.report import majority, one_class, one_prediction, text_report, undefined_notes

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"


def one_hot_logits(predicted, classes):
    return np.eye(classes, dtype=np.float32)[predicted] * 4


def test_sums_do_not_depend_on_how_examples_are_cut():
    whole, parts = Sums(), Sums()
    whole.add({"loss": (10.0, 4.0)})
    parts.add({"loss": (np.float32(1.0), np.float32(1.0))})
    parts.add({"loss": (np.float32(9.0), np.float32(3.0))})
    assert whole.means() == parts.means() == {"loss": 2.5}  # not (1/1 + 9/3) / 2 = 2
    assert parts.weight("loss") == 4.0
    assert parts.weight("absent") == 0.0


def test_sums_without_weight_are_nan_and_clear_forgets():
    sums = Sums()
    sums.add({"loss": (0.0, 0.0)})
    assert np.isnan(sums.means()["loss"])
    sums.clear()
    assert sums.means() == {}


def test_sums_keep_small_terms_that_float32_would_lose():
    sums = Sums()
    sums.add({"loss": (np.float32(2.0**24), 1.0)})
    for _ in range(4):
        sums.add({"loss": (np.float32(1.0), 0.0)})
    assert sums.means()["loss"] == 2.0**24 + 4


def test_binary_by_hand():
    # Class 1: 2 found (rows 0, 1), 1 missed (row 2), 1 false alarm (row 3); class 0: row 4 right.
    labels = np.array([1, 1, 1, 0, 0])
    logits = np.array([[0, 3], [0, 2], [0, -1], [0, 1], [0, -2]], np.float32)
    values = classification_metrics(SINGLE, logits, labels, ["no", "yes"])
    assert values["accuracy"] == pytest.approx(3 / 5)
    assert values["f1/yes"] == values["f1"] == pytest.approx(4 / 6)  # 2tp / (2tp + fp + fn)
    assert values["f1/no"] == pytest.approx(2 / 4)
    assert values["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert values["f1_micro"] == pytest.approx(3 / 5)
    assert values["precision_macro"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert values["recall_macro"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    # (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn)) = (2 - 1) / sqrt(3 * 3 * 2 * 2)
    assert values["matthews"] == pytest.approx(1 / 6)
    # Of the 6 pairs (a yes, a no), yes scores higher in 5: only the pair (row 2, row 3) is wrong.
    assert values["roc_auc"] == pytest.approx(5 / 6)
    assert set(values) == {
        *("accuracy", "f1", "f1_macro", "f1_micro", "precision_macro", "recall_macro"),
        *("matthews", "roc_auc", "f1/no", "f1/yes"),
    }


def test_three_classes_by_hand():
    labels = np.array([0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 1, 1, 1, 2, 0])
    values = classification_metrics(SINGLE, one_hot_logits(predicted, 3), labels, ["a", "b", "c"])
    # a: tp 1, fp 1, fn 1; b: tp 2, fp 1, fn 0; c: tp 1, fp 0, fn 1
    assert values["f1/a"] == pytest.approx(2 / 4)
    assert values["f1/b"] == pytest.approx(4 / 5)
    assert values["f1/c"] == pytest.approx(2 / 3)
    assert values["f1"] == values["f1_macro"] == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    assert values["f1_micro"] == values["accuracy"] == pytest.approx(4 / 6)
    assert values["precision_macro"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert values["recall_macro"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    # One against the rest, ties count half. a: 8 pairs, {1, 0} against {0, 0, 0, 1}: 3.5 + 1.5 = 5;
    # b: {1, 1} against {0, 1, 0, 0}: 3.5 + 3.5 = 7; c: {1, 0} against {0, 0, 0, 0}: 4 + 2 = 6.
    assert values["roc_auc"] == pytest.approx((5 / 8 + 7 / 8 + 6 / 8) / 3)


def test_a_class_that_does_not_occur_is_left_out_of_the_averages_and_noted():
    labels = np.array([0, 0, 1])
    logits = one_hot_logits(np.array([0, 1, 1]), 3)
    values = classification_metrics(SINGLE, logits, labels, ["a", "b", "never"])
    assert values["f1_macro"] == pytest.approx(2 / 3)  # a and b are both 2/3
    assert np.isnan(values["f1/never"])
    assert np.isnan(values["roc_auc"])
    auc, f1 = undefined_notes(SINGLE, logits, labels, ["a", "b", "never"])
    assert auc == "roc_auc is undefined: no row has the label 'never'"
    assert f1.startswith("f1/never is undefined and left out of the averages")


def test_labels_of_one_class_give_nan_and_a_note_without_warning():
    labels = np.zeros(3, np.int32)
    logits = one_hot_logits(np.array([0, 1, 0]), 2)
    values = classification_metrics(SINGLE, logits, labels, ["a", "b"])
    assert np.isnan(values["roc_auc"])
    assert np.isnan(values["matthews"])
    assert values["accuracy"] == pytest.approx(2 / 3)
    notes = undefined_notes(SINGLE, logits, labels, ["a", "b"])
    assert notes == ["matthews and roc_auc are undefined: every row has the label 'a'"]
    assert "note: matthews" in text_report(SINGLE, logits, labels, ["a", "b"])


def test_one_predicted_class_gives_zeros_without_warning():
    labels = np.array([0, 1])
    values = classification_metrics(SINGLE, one_hot_logits([0, 0], 2), labels, ["a", "b"])
    assert values["f1"] == values["matthews"] == 0.0
    assert values["precision_macro"] == pytest.approx(1 / 4)


def test_multi_label_by_hand():
    labels = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]], np.float32)
    logits = np.array([[2, -1, 3], [-1, 1, -2], [-3, 2, -1], [-2, 1, -3]], np.float32)
    # Predicted over 0.5: x, z | y | y | y. x: tp 1, fn 1; y: tp 2, fp 1; z: tp 1.
    values = classification_metrics(MULTI, logits, labels, ["x", "y", "z"])
    assert values["accuracy"] == pytest.approx(2 / 4)  # rows 0 and 1 are right in every label
    assert values["f1_micro"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    assert values["f1"] == values["f1_macro"] == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)
    assert values["precision_macro"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert values["recall_macro"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    # x: {2, -3} against {-1, -2}: 2 of 4 pairs; y: {1, 2} against {-1, 1}: 3.5 of 4; z: all.
    assert values["roc_auc"] == pytest.approx((2 / 4 + 3.5 / 4 + 1) / 3)
    assert "matthews" not in values


def test_multi_label_exactly_half_is_not_predicted_and_absent_labels_are_noted():
    labels = np.array([[0, 1], [0, 0]], np.float32)
    logits = np.array([[0, 1], [-1, -1]], np.float32)
    values = classification_metrics(MULTI, logits, labels, ["x", "y"])
    assert values["accuracy"] == 1.0
    assert values["f1/x"] == 0.0
    assert np.isnan(values["roc_auc"])
    notes = undefined_notes(MULTI, logits, labels, ["x", "y"])
    assert notes == [
        "roc_auc is undefined: no row has the label 'x'",
        "f1/x counts as 0: neither a row nor a prediction has the label",
    ]


def test_multi_label_without_any_label_is_zero():
    values = classification_metrics(MULTI, -np.ones((2, 2)), np.zeros((2, 2)), ["x", "y"])
    assert values["accuracy"] == 1.0
    assert values["f1"] == values["f1_micro"] == values["precision_macro"] == 0.0


def test_regression_by_hand():
    labels = np.array([1.0, 2.0, 3.0, 4.0])
    logits = np.array([[1.0], [3.0], [2.0], [6.0]])
    values = classification_metrics("regression", logits, labels, [])
    assert values["mse"] == pytest.approx((0 + 1 + 1 + 4) / 4)
    assert values["mae"] == pytest.approx((0 + 1 + 1 + 2) / 4)
    # Deviations -2, 0, -1, 3 and -1.5, -0.5, 0.5, 1.5: 7 / sqrt(14 * 5); ranks 1, 3, 2, 4.
    assert values["pearson"] == pytest.approx(7 / np.sqrt(70))
    assert values["spearman"] == pytest.approx(
        1 - 6 * 2 / (4 * 15)
    )  # 1 - 6 sum d^2 / (n (n^2 - 1))


def test_correlations_agree_with_scipy_with_ties():
    from scipy import stats

    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 40).astype(np.float32)
    y = x + rng.integers(0, 4, 40)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_correlations_end_at_one_whatever_the_rounding():
    rng = np.random.default_rng(0)
    series = rng.normal(size=(50, 10))
    assert max(pearson(x, 3 * x) for x in series) == 1.0
    assert min(pearson(x, -3 * x) for x in series) == -1.0


def test_correlation_with_a_constant_is_nan_with_a_note():
    assert np.isnan(pearson([1.0, 2.0], [3.0, 3.0]))
    assert np.isnan(pearson([1.0], [2.0]))
    labels, logits = np.array([1.0, 2.0]), np.array([[3.0], [3.0]])
    values = classification_metrics("regression", logits, labels, [])
    assert np.isnan(values["pearson"])
    assert np.isnan(values["spearman"])
    assert values["mse"] == pytest.approx(2.5)
    assert undefined_notes("regression", logits, labels, []) == [
        "pearson and spearman are undefined: the predictions are all 3"
    ]


def test_probabilities_stay_finite_for_extreme_logits():
    logits = np.array([[1e4, -1e4], [-1e4, -1e4]], np.float32)
    np.testing.assert_array_equal(softmax(logits), [[1, 0], [0.5, 0.5]])
    np.testing.assert_array_equal(sigmoid(logits), [[1, 0], [0, 0]])
    assert sigmoid(np.log(3.0)) == pytest.approx(0.75)
    np.testing.assert_allclose(softmax(np.log([[1.0, 3.0]])), [[0.25, 0.75]])
    np.testing.assert_allclose(
        softmax(np.log([[[1.0, 3.0], [4.0, 1.0]]])), [[[0.25, 0.75], [0.8, 0.2]]]
    )
    np.testing.assert_array_equal(probabilities(MULTI, logits), sigmoid(logits))
    np.testing.assert_array_equal(probabilities(SINGLE, logits), softmax(logits))


def test_no_rows_and_non_finite_logits_are_named():
    with pytest.raises(InputError, match="no rows"):
        classification_metrics(SINGLE, np.zeros((0, 2)), np.zeros(0, int), ["a", "b"])
    logits = np.array([[0, 1], [np.nan, 1], [0, np.inf]])
    with pytest.raises(InputError, match=r"2 of 3 rows are not finite \(the first: row 2"):
        classification_metrics(SINGLE, logits, np.array([0, 1, 1]), ["a", "b"])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        classification_metrics(SINGLE, np.zeros((2, 3)), np.zeros(2, int), ["a", "b"])
    with pytest.raises(ValueError, match="do not fit"):
        classification_metrics(MULTI, np.zeros((2, 2)), np.zeros(2, int), ["a", "b"])


def test_report_shows_the_confusion_matrix_and_aligns_wide_characters():
    labels = np.array([0, 0, 0, 1])
    logits = one_hot_logits(np.array([0, 0, 1, 1]), 2)
    lines = text_report(SINGLE, logits, labels, ["负面", "positive"]).splitlines()
    assert lines[0] == "4 examples"
    assert "accuracy         0.7500" in lines
    assert "label     precision  recall      f1  rows" in lines
    assert "负面         1.0000  0.6667  0.8000     3" in lines
    assert "positive     0.5000  1.0000  0.6667     1" in lines
    start = lines.index(
        "confusion matrix (a row for each true label, a column for each predicted id)"
    )
    assert lines[start + 1 : start + 4] == [
        "            0  1",
        "0 负面      2  1",
        "1 positive  0  1",
    ]


def test_the_report_has_what_no_model_comes_to():
    labels = np.array([0, 0, 0, 1])
    lines = text_report(SINGLE, one_hot_logits(1 - labels, 2), labels, ["负面", "b"]).splitlines()
    assert "majority class '负面': accuracy 0.7500" in lines
    sets = np.array([[1, 0], [1, 1], [1, 1], [0, 0], [1, 1]], np.float32)
    lines = text_report(MULTI, sets - 0.5, sets, ["x", "y"]).splitlines()
    assert "most frequent labels, 'x', 'y': accuracy 0.6000" in lines
    lines = text_report(MULTI, sets[:4] - 0.5, 0 * sets[:4], ["x", "y"]).splitlines()
    assert "most frequent labels, no label: accuracy 1.0000" in lines
    numbers = np.array([1.0, 2.0, 6.0])  # mean 3, squared distances 4, 1, 9
    lines = text_report("regression", numbers, numbers, []).splitlines()
    assert "mean of the labels, 3.0000: mse 4.6667" in lines
    assert majority(np.array([-1, -1, -1, 2, 2, 0]), ["a", "b", "c"]) == (
        "majority class 'c': accuracy 0.6667"
    )


def test_one_prediction_for_all_rows_is_remarked_on():
    labels = np.array([0, 2, 0])
    said = "the model predicts 'b' for every row, though there are 2 classes"
    always = one_hot_logits(np.array([1, 1, 1]), 3)
    assert one_prediction(SINGLE, always, labels, ["a", "b", "c"]) == said
    assert f"note: {said}" in text_report(SINGLE, always, labels, ["a", "b", "c"]).splitlines()
    differ = one_hot_logits(np.array([1, 1, 0]), 3)
    assert one_prediction(SINGLE, differ, labels, ["a", "b", "c"]) is None
    assert one_prediction(SINGLE, always, 0 * labels, ["a", "b", "c"]) is None  # nothing to tell
    sets = np.array([[1, 0], [0, 1]], np.float32)
    for logits, what in (([9, -9], "'x'"), ([9, 9], "'x', 'y'"), ([-9, -9], "no label")):
        found = one_prediction(MULTI, np.array([logits] * 2, np.float32), sets, ["x", "y"])
        assert found == f"the model predicts {what} for every row"
    assert one_prediction(MULTI, sets - 0.5, sets, ["x", "y"]) is None
    numbers = np.array([1.0, 2.0])
    found = one_prediction("regression", np.array([2.5, 2.5]), numbers, [])
    assert found == "the model predicts 2.5 for every row, though the labels differ"
    assert one_prediction("regression", numbers, numbers, []) is None
    said = "the model predicts 'O' for every word, though there are 2 classes"
    words = np.array([-1, 1, 0])
    assert one_class(np.array([0, 0, 0]), words, ["O", "B-PER"], "word") == said
    assert one_class(np.array([0, 0, 0]), 0 * words, ["O", "B-PER"], "word") is None


def test_multi_label_and_regression_reports():
    labels = np.array([[1, 0], [1, 1], [0, 1]], np.float32)
    logits = np.array([[1, -1], [1, -1], [1, -1]], np.float32)
    text = text_report(MULTI, logits, labels, ["x", "y"])
    assert "label  right  missed  false  rightly absent" in text.splitlines()
    assert "x          2       0      1               0" in text.splitlines()
    assert "y          0       2      0               1" in text.splitlines()
    text = text_report("regression", np.array([1.0, 2.0]), np.array([1.0, 3.0]), [])
    assert "pearson   1.0000" in text.splitlines()
