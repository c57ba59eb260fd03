"""Balanced classes: their weights in the loss, and how often their examples are drawn."""

from dataclasses import replace

import numpy as np
import pytest
from test_packing import make_examples

from jaxllm.config.checks import check
from jaxllm.config.fields import Config, DataConfig, ModelConfig
from jaxllm.data.loader import LoaderState, TrainLoader
from jaxllm.data.sampler import Balanced
from jaxllm.errors import InputError
from jaxllm.tasks.classification import balanced_weights

CLASSES = {0: 70, 1: 3, 3: 28}  # nothing is of class 2


@pytest.fixture
def examples(rng):
    labels = rng.permutation(np.repeat(list(CLASSES), list(CLASSES.values()))).astype(np.int32)
    return make_examples(rng.integers(3, 20, len(labels)), labels)


def test_weights_are_those_of_scikit_learn(examples):
    from sklearn.utils.class_weight import compute_class_weight

    labels = examples.labels
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 4)[[0, 1, 3]], expected, rtol=1e-12)
    assert balanced_weights(labels, 4)[2] == 0
    assert balanced_weights(np.array([-1, 0, 1, 1, -1, 1]), 2).tolist() == [2.0, 2 / 3]


def test_each_class_is_drawn_equally_often(examples):
    balanced, drawn = Balanced(examples, seed=5), set()
    for epoch in range(40):
        index = balanced.at(epoch).index
        assert len(index) == len(examples) == 101
        labels, counts = np.unique(examples.labels[index], return_counts=True)
        assert labels.tolist() == list(CLASSES)
        assert set(counts) == {33, 34}
        for label in CLASSES:  # within a class no example is left behind
            times = np.bincount(index, minlength=101)[examples.labels == label]
            assert times.max() - times.min() <= 1
        drawn |= set(index.tolist())
    assert len(drawn) == 101  # those that one epoch leaves out another has


def test_draws_depend_on_seed_and_epoch_alone(examples):
    one, again = Balanced(examples, 5), Balanced(examples, 5)
    late = one.at(7).index.tolist()
    for epoch in (3, 7, 1, 9, 7):
        assert again.at(epoch).index.tolist() == one.at(epoch).index.tolist()
    assert again.at(7).index.tolist() == late
    assert sorted(late) != sorted(one.at(8).index.tolist())
    assert sorted(late) != sorted(Balanced(examples, 6).at(7).index.tolist())


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_has_the_tokens_and_labels_of_what_was_drawn(examples, packing):
    data = DataConfig(max_length=32, packing=packing, buckets=[32])
    balanced = Balanced(examples, 5)
    loader = TrainLoader(balanced, data=data, batch_size=16, seed=5)
    steps = loader.steps_in_epoch(0)
    batches = loader.batches(LoaderState())
    counts = np.zeros(4)
    for _ in range(steps):
        batch = next(batches)
        index = balanced.at(0).index[batch.members]
        labels = np.asarray(batch.arrays["labels"])[np.asarray(batch.arrays["label_weights"]) > 0]
        assert labels.tolist() == examples.labels[index].tolist()
        assert batch.example_rows.tolist() == examples.rows[index].tolist()
        assert batch.real_tokens == examples.lengths[index].sum()
        tokens = np.asarray(batch.arrays["input_ids"])[np.asarray(batch.arrays["segment_ids"]) > 0]
        texts = [examples.tokens[slice(*examples.offsets[i : i + 2])] for i in index]
        assert tokens.tolist() == np.concatenate(texts).tolist()
        counts += np.bincount(labels, minlength=4)
    assert sorted(counts) == [0, 33, 34, 34]

    # A loader that starts in the middle goes on with the same batches.
    resumed = TrainLoader(Balanced(examples, 5), data=data, batch_size=16, seed=5)
    first, second = next(batches), next(resumed.batches(LoaderState(1, 0)))
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)


@pytest.mark.parametrize(
    "model",
    [
        {"task": "token-classification"},
        {"problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
        {"task": "question-answering"},
    ],
)
def test_rows_without_a_class_cannot_be_balanced(model):
    config = Config(ModelConfig(path="x"), DataConfig(train=["a.csv"], sampler="balanced"))
    check(config)
    with pytest.raises(InputError, match=r"data\.sampler: found 'balanced', expected shuffle"):
        check(replace(config, model=ModelConfig(path="x", **model)))
