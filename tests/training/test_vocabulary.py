"""Training with the reached rows of the word embedding is training with all of them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxllm.config.fields import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.data.loader import LoaderState
from jaxllm.nn.sharding import make_mesh
from jaxllm.tasks import build as task_build
from jaxllm.training import vocabulary
from jaxllm.training.vocabulary import PATH, Vocabulary
from jaxllm.trees import flatten

WORDS = ["good", "bad", "film", "plot", "loved", "hated"]


@pytest.fixture
def config(tiny_bert_config, tiny_tokenizer_dir, tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(24)]
    rows = [f"{text},{('good' in text) * 1}" for text in texts]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows, ""]))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    attributes = {name: getattr(tiny_bert_config, name) for name in names}
    attributes |= {"model_type": "bert", "vocab_size": 600, "max_position_embeddings": 64}
    return Config(
        ModelConfig(config=attributes, tokenizer=str(tiny_tokenizer_dir)),
        DataConfig(
            train=[str(tmp_path / "train.csv")],
            dev=[str(tmp_path / "train.csv")],
            max_length=16,
            cache_dir=str(tmp_path / "cache"),
        ),
        OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        TrainConfig(batch_size=8, epochs=1),
        MeshConfig(data=2, fsdp=2, tensor=2),
        RunConfig(dir=str(tmp_path / "run")),
    )


def trained(config):
    """(table in the train state, exported-like parameters' metrics, losses) after four steps."""
    job = task_build.build(config)
    state, losses = job.state, []
    for _, batch in zip(range(4), job.loader.batches(LoaderState()), strict=False):
        state, metrics = job.train_step(state, batch.arrays)
        losses.append(float(metrics["loss"][0]))
    return job, state.params, losses


def whole_table_instead(monkeypatch):
    """All words are reached."""
    whole = lambda tokens, size: Vocabulary(np.arange(size, dtype=np.int32), size)  # noqa: E731
    monkeypatch.setattr(vocabulary.Vocabulary, "of", whole)


def test_the_same_steps_and_the_same_model(config, tmp_path, monkeypatch):
    job, params, losses = trained(config)
    job.export(params, tmp_path / "few")
    metrics = job.evaluate(params)
    start = np.asarray(task_build.build(config).state.params["embeddings"]["word"]["embedding"])
    with monkeypatch.context() as patch:
        whole_table_instead(patch)
        other, all_params, expected = trained(config)
        other.export(all_params, tmp_path / "all")
        assert flatten(all_params)[PATH].shape == (600, 32)
        assert metrics == pytest.approx(other.evaluate(all_params), nan_ok=True)
    assert flatten(params)[PATH].shape == start.shape == (128, 32)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    few, all_ = (read(tmp_path / name) for name in ("few", "all"))
    assert few.keys() == all_.keys()
    for name, x in few.items():
        np.testing.assert_allclose(x, all_[name], rtol=1e-5, atol=1e-6, err_msg=name)


def read(directory):
    from safetensors.numpy import load_file

    return load_file(directory / "model.safetensors")


def test_adafactor_trains_the_whole_table(config):
    config = replace(config, optimizer=replace(config.optimizer, name="adafactor"))
    assert flatten(task_build.build(config).state.params)[PATH].shape == (600, 32)


def test_a_penalty_covers_the_whole_table(config, monkeypatch):
    """And the step is told what it adds to the loss."""
    step = {}
    monkeypatch.setattr(task_build, "make_train_step", lambda *_, **options: step.update(options))
    for l2, rows in ((0.0, 128), (0.5, 600)):
        job = task_build.build(replace(config, optimizer=replace(config.optimizer, l2=l2)))
        params = flatten(job.state.params)
        assert params[PATH].shape == (rows, 32)
        if l2 == 0.0:
            assert step["penalty"] is None
    covered = [x for path, x in params.items() if path.endswith(("kernel", "embedding"))]
    expected = 0.25 * sum(float(np.sum(np.square(x))) for x in covered)
    assert float(step["penalty"](params)) == pytest.approx(expected, rel=1e-6)


def test_a_vocabulary_is_the_ids_of_the_text(rng):
    tokens = rng.integers(400, 600, 5000).astype(np.int32)
    found = Vocabulary.of(tokens, 1000)
    assert len(found.ids) == 256
    assert (np.diff(found.ids) > 0).all()
    assert set(tokens) | {0} <= set(found.ids)
    assert Vocabulary.of(np.array([3], np.int32), 100).ids.tolist() == list(range(100))


def test_rows_that_are_not_reached_stay(rng):
    mesh = make_mesh(devices=jax.devices()[:1])
    table = jax.numpy.asarray(rng.normal(size=(300, 4)), jax.numpy.float32)
    params = {"embeddings": {"word": {"embedding": table}, "norm": {"scale": table[0]}}}
    found = Vocabulary(np.array([0, 7, 200], np.int32), 300)
    few, complete = found.take(params, mesh)
    few["embeddings"]["word"]["embedding"] += 1.0
    expected = np.asarray(table).copy()
    expected[[0, 7, 200]] += 1.0
    after = complete(few)
    np.testing.assert_array_equal(after["embeddings"]["word"]["embedding"], expected)
    assert after["embeddings"]["norm"] is params["embeddings"]["norm"]
