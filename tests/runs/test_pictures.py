"""The pictures of a run: what is in them, and names that fonts or matplotlib stumble over."""

import math

import numpy as np
import pytest

from jaxllm.metrics import classification_plots, figures
from jaxllm.metrics.classification import roc_auc
from jaxllm.runs import curves

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, by the names of their files; each is really drawn."""
    seen = {}

    def save(figure, path):
        seen[path.name] = figure
        figures.save(figure, path)
        assert path.read_bytes().startswith(b"\x89PNG")

    for module in (curves, classification_plots):
        monkeypatch.setattr(module, "save", save)
    return seen


@pytest.fixture
def dejavu_alone(monkeypatch):
    """A machine that has no fonts but DejaVu Sans."""
    file = figures._files()["DejaVu Sans"]
    figures._font_with.cache_clear()
    monkeypatch.setattr(figures, "_files", lambda: {"DejaVu Sans": file})
    yield
    figures._font_with.cache_clear()


def records(**metrics):
    """Training losses at four steps, evaluations at steps 20 and 40."""
    steps = [{"step": s, "epoch": s / 40, "loss": 4.0 / s} for s in (10, 20, 30, 40)]
    evaluations = [
        {"step": s, "epoch": s / 40, **{f"eval/{name}": v[i] for name, v in metrics.items()}}
        for i, s in enumerate((20, 40))
    ]
    return [*steps, *evaluations]


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_chosen_metric_is_alone_and_its_best_step_is_marked(drawn, tmp_path):
    given = records(loss=[0.5, 0.6], accuracy=[0.7, 0.6], f1_macro=[0.8, 0.75], f1_micro=[0.7, 0.6])
    curves.draw(given, tmp_path, "f1_macro", 20)
    loss, metric = drawn["curves.png"].axes
    assert (loss.get_title(), metric.get_title()) == ("loss", "f1_macro")
    assert labels(loss) == ["train", "dev"]
    assert labels(metric) == ["dev", "best 0.8 at step 20"]
    lines = [line.get_xydata().tolist() for line in metric.lines]
    assert lines == [[[20, 0.8], [40, 0.75]], [[20, 0], [20, 1]], [[20, 0.8]]]
    assert [[20, 0], [20, 1]] in [line.get_xydata().tolist() for line in loss.lines]
    (others,) = drawn["curves_all.png"].axes
    assert labels(others) == ["accuracy = f1_micro"]  # or one line would hide the other


def test_the_other_metrics_by_scale_no_colour_twice_the_legend_outside(drawn, tmp_path):
    names = ("a", "_b", "5 $ or 6 $", "x" * 40, *"cdefgh")
    classes = {f"f1/{name}": [0.01 * i, None] for i, name in enumerate(names)}
    given = records(
        **{"loss": [1.0, 0.5], "exact_match": [50.0, 60.0], "f1": [0.5, 0.6], **classes}
    )
    curves.draw(given, tmp_path, "loss", 40)
    big, small, by_class = drawn["curves_all.png"].axes
    assert labels(big) == ["exact_match"]
    assert labels(small) == ["f1"]
    assert labels(by_class)[:4] == ["f1/a", "f1/_b", r"f1/5 \$ or 6 \$", f"f1/{'x' * 23}…"]
    assert len(labels(by_class)) == 10
    shown = [line.get_color() for axes in (big, small, by_class) for line in axes.lines]
    assert len(set(shown)) == len(shown) == 12
    for axes in (big, small, by_class):
        assert axes.get_legend().get_window_extent().x0 > axes.get_window_extent().x1
    (only,) = drawn["curves.png"].axes  # the metric is the loss itself
    assert labels(only) == ["train", "dev", "best 0.5 at step 40"]


def test_without_evaluation_there_is_the_loss_alone(drawn, tmp_path):
    curves.draw(records()[:4], tmp_path, "accuracy", 0)
    assert list(drawn) == ["curves.png"]
    (loss,) = drawn["curves.png"].axes
    assert labels(loss) == ["train"]


@pytest.mark.parametrize("count", [1, 10, 11, 12, 30, 97])
def test_colours_differ(count):
    assert len(set(figures.colours(count))) == count


def test_names_that_no_font_has_are_numbers(drawn, dejavu_alone, tmp_path):
    names = ["正面", "b", "🙂 ok", " ", "é"]
    assert figures.written(names)[0] == ["0", "b", "2", "3", "é"]
    given = records(loss=[1.0, 0.5], **{f"f1/{name}": [0.5, 0.6] for name in names})
    curves.draw(given, tmp_path, "f1/正面", 20)
    assert drawn["curves.png"].axes[1].get_title() == "f1/0"
    assert labels(drawn["curves_all.png"].axes[0]) == ["f1/b = f1/2 = f1/3 = …"]
    classification_plots.draw(tmp_path, SINGLE, np.eye(5), np.arange(5), names)
    ticks = [text.get_text() for text in drawn["confusion.png"].axes[0].get_xticklabels()]
    assert ticks == ["0", "b", "2", "3", "é"]


def test_another_font_that_has_the_characters_is_taken(drawn, tmp_path):
    name = "\u23b0\u23b1"  # brackets that DejaVu lacks; of matplotlib's own fonts one has them
    assert figures.written([name, "b"])[0] == [name, "b"]
    classification_plots.draw(tmp_path, SINGLE, np.eye(2), np.arange(2), [name, "b"])


def test_names_that_are_cut_alike_stay_apart():
    texts, _ = figures.written(["a" * 30 + "1", "a" * 30 + "2"])
    assert texts == [f"0 {'a' * 23}…", f"1 {'a' * 23}…"]


def test_confusion_matrix_and_roc_by_hand(drawn, tmp_path):
    truth, predicted = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 0])
    scores = np.eye(3)[predicted] + 0.1 * np.arange(18).reshape(6, 3) % 0.3
    classification_plots.draw(tmp_path, SINGLE, scores, truth, ["a", "b", "c"])
    axes, _ = drawn["confusion.png"].axes
    share = axes.images[0].get_array().tolist()
    assert share == [[0.75, 0.25, 0], [0, 1, 0], [1, 0, 0]]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "3", (1, 0): "1", (1, 1): "1", (0, 2): "1"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "label")
    (roc,) = drawn["roc.png"].axes
    soft = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    areas = [roc_auc(truth == c, soft[:, c]) for c in range(3)]
    assert labels(roc) == [f"{name}: {area:.4f}" for name, area in zip("abc", areas, strict=True)]


def test_roc_of_two_classes_is_of_the_second(drawn, tmp_path):
    scores = np.array([[0.0, 1], [0, 2], [0, 0], [0, 3]])
    classification_plots.draw(tmp_path, SINGLE, scores, np.array([0, 1, 0, 1]), ["no", "_yes"])
    (roc,) = drawn["roc.png"].axes
    assert labels(roc) == [" _yes: 1.0000"]
    classification_plots.draw(tmp_path, SINGLE, scores, np.zeros(4, int), ["no", "yes"])
    assert not (tmp_path / "roc.png").exists()  # nothing to tell apart, and none of before


def test_several_labels_a_row(drawn, tmp_path):
    truth = np.array([[1, 0], [1, 1], [0, 0]], np.float32)
    scores = np.array([[2.0, 1], [-2, 1], [-2, -1]])
    classification_plots.draw(tmp_path, MULTI, scores, truth, ["x", "y"])
    axes, _ = drawn["confusion.png"].axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "1", (1, 0): "1", (0, 1): "1", (2, 1): "1"}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["right", "missed", "false"]
    assert labels(drawn["roc.png"].axes[0]) == ["x: 0.7500", "y: 0.7500"]


def test_many_classes_stay_readable(drawn, tmp_path):
    rng, classes = np.random.default_rng(0), 130
    truth = np.arange(2 * classes) % classes
    scores = 2 * np.eye(classes)[truth] + rng.normal(size=(len(truth), classes))
    names = [f"intent {i}" for i in range(classes)]
    classification_plots.draw(tmp_path, SINGLE, scores, truth, names)
    axes, _ = drawn["confusion.png"].axes
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert ticks == names[:: math.ceil(classes / 60)]
    assert not axes.texts
    assert max(drawn["confusion.png"].get_size_inches()) <= 16
    (roc,) = drawn["roc.png"].axes
    assert len(labels(roc)) == 10
    soft = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    worst = min(range(classes), key=lambda c: roc_auc(truth == c, soft[:, c]))
    assert labels(roc)[0].startswith(f"intent {worst}: ")
