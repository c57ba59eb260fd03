"""Masked language modelling and BERT's pretraining as tasks: losses, the loop, resume, mistakes."""

import json
import math
import re

import jax
import numpy as np
import pytest
from answering import predict
from configurations import change

from jaxllm import models
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
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.metrics import throughput
from jaxllm.nn.sharding import make_mesh
from jaxllm.pretrained import hf
from jaxllm.runs import loop
from jaxllm.tasks import build as task_build
from jaxllm.tasks import evaluate as task_evaluate
from jaxllm.tasks import pretraining, registry
from jaxllm.tasks.build import build
from jaxllm.tasks.evaluate import evaluate
from jaxllm.training import pretraining_objectives

SENTENCE = "the film was good and not bad but great with plot music acting story book"
WORDS = SENTENCE.split()


@pytest.fixture(autouse=True)
def as_many_devices_as_asked_for(monkeypatch):
    """Programs for one device compile in a fraction of the time of those for all eight."""

    def make(data, fsdp, tensor):
        return make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])

    for module in (task_build, task_evaluate):
        monkeypatch.setattr(module, "make_mesh", make)


@pytest.fixture
def config(tmp_path, tiny_tokenizer_dir, rng):
    """A run on documents whose lines count through WORDS, so that a mask can be filled."""
    lines = []
    for _ in range(24):
        begin = rng.integers(len(WORDS))
        words = [WORDS[(begin + i) % len(WORDS)] for i in range(24)]
        lines += [" ".join(words[i : i + 6]) for i in range(0, 24, 6)] + [""]
    for name in ("train.txt", "dev.txt"):
        (tmp_path / name).write_text("\n".join(lines))
    vocabulary = (tiny_tokenizer_dir / "vocab.txt").read_text().splitlines()
    shape = {
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return Config(
        model=ModelConfig(task="masked-lm", tokenizer=str(tiny_tokenizer_dir), config=shape),
        data=DataConfig(
            train=[str(tmp_path / "train.txt")],
            dev=[str(tmp_path / "dev.txt")],
            max_length=32,
            cache_dir=str(tmp_path / "cache"),
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        train=TrainConfig(batch_size=16, steps=4, eval_batch_size=8),
        mesh=MeshConfig(data=1),
        run=RunConfig(dir=str(tmp_path / "run"), progress=False, trackers=[], log_every=1),
    )


def pairs(config):
    return change(config, model={"task": "pretraining"})


def electra(config):
    shape = {**config.model.config, "model_type": "electra", "embedding_size": 16}
    return change(pairs(config), model={"config": {**shape, "num_attention_heads": 4}})


TASKS = {"masked-lm": lambda config: config, "pretraining": pairs}


@pytest.mark.parametrize("task", TASKS)
def test_a_run_from_files_to_a_model_that_is_judged_again(config, task, tmp_path, monkeypatch):
    config = TASKS[task](config)
    monkeypatch.setitem(throughput.PEAK_FLOPS, "cpu", 1e12)
    summary = loop.train(config, task_build.build)
    expected = {"loss", "masked_accuracy", "perplexity", "surplus_masks"}
    if task == "pretraining":
        expected |= {"masked_loss", "next_sentence_loss", "next_sentence_accuracy"}
    assert {key[5:] for key in summary if key.startswith("eval/")} >= expected
    masked = summary["eval/masked_loss" if task == "pretraining" else "eval/loss"]
    assert summary["eval/perplexity"] == pytest.approx(math.exp(masked))
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    chance = math.log(config.model.config["vocab_size"])
    flops = 1e12 * first["mfu"] / first["real_tokens_per_second"]  # of a token
    blocks = 6 * 2 * (4 * 32**2 + 2 * 32 * 64)
    assert blocks < flops < 1.5 * blocks
    found = 1e12 * summary["train/mfu"] / summary["train/real_tokens_per_second"]
    assert found == pytest.approx(flops)
    assert first["loss"] == pytest.approx(chance + (task == "pretraining") * math.log(2), abs=0.4)
    saved = change(
        config, model={"path": str(tmp_path / "run/model"), "tokenizer": None, "config": {}}
    )
    again = evaluate(saved)
    assert again["loss"] == pytest.approx(summary["eval/loss"], rel=1e-5)
    report = (tmp_path / "run" / "evaluate" / "report.txt").read_text()
    assert re.search(rf"^masked_accuracy +{again['masked_accuracy']:.4f}$", report, re.M)


def test_pairs_need_two_types_of_tokens(config):
    one = change(pairs(config), model={"config": {**config.model.config, "type_vocab_size": 1}})
    with pytest.raises(InputError, match="found type_vocab_size 1, expected two"):
        build(one)


def test_a_run_of_electra_leaves_a_pair_that_is_judged_and_trained_again(config, tmp_path, caplog):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = electra(config)
    config = change(config, model={"config": {**config.model.config, "generator": sizes}})
    with caplog.at_level("INFO", "jaxllm"):
        summary = loop.train(config, task_build.build)
    assert {"eval/replaced_loss", "eval/replaced_accuracy"} <= set(summary)
    parts = summary["eval/masked_loss"] + 50 * summary["eval/replaced_loss"]
    assert summary["eval/loss"] == pytest.approx(parts)
    from jaxllm import AutoModelForMaskedLM, AutoModelForPreTraining

    directory = tmp_path / "run" / "model"
    assert f"next: jaxllm predict --model {directory / 'generator'} " in caplog.text
    (tmp_path / "in.txt").write_text('{"text": "a [MASK] film"}\n')
    answers = predict(str(directory / "generator"), str(tmp_path / "in.txt"), str(tmp_path / "out"))
    assert answers == {"rows": 1, "errors": 0, "truncated": 0}
    assert "masks" in json.loads((tmp_path / "out").read_text())
    discriminator = AutoModelForPreTraining.from_pretrained(directory)
    assert set(discriminator.params) == {"blocks", "discriminator", "embeddings"}
    generator = AutoModelForMaskedLM.from_pretrained(directory / "generator")
    assert {name: getattr(generator.config, name) for name in sizes} == sizes
    words = [
        model.params["embeddings"]["word"]["embedding"] for model in (discriminator, generator)
    ]
    np.testing.assert_array_equal(*words)

    saved = change(
        config,
        model={"path": str(directory), "tokenizer": None, "config": {}},
        run={"dir": str(tmp_path / "more")},
    )
    assert evaluate(saved)["loss"] == pytest.approx(summary["eval/loss"], rel=1e-5)
    job, _ = batch_of(saved)
    assert job.evaluate(job.state.params)["loss"] == pytest.approx(summary["eval/loss"], rel=1e-5)

    moved = tmp_path / "elsewhere"
    (directory / "generator").rename(moved)
    with pytest.raises(InputError, match=r"discriminator alone.* as model\.generator"):
        evaluate(saved)
    apart = change(saved, model={"generator": str(moved)})
    assert evaluate(apart)["loss"] == pytest.approx(summary["eval/loss"], rel=1e-5)


def save_electra(directory, config, head, **sizes):
    shape = {**electra(config).model.config, **sizes}
    shape.pop("generator", None)
    model_config = hf.load_config(None, **shape)
    params = models.init_params(model_config, head, seed=len(head))
    source = load_tokenizer(config.model.tokenizer)
    hf.save_pretrained(directory, params, model_config, head, tokenizer=source)
    return str(directory)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"embedding_size": 24}, r"'embedding_size': 24.*expected a generator that shares"),
        ({}, r"its embeddings are not those of the discriminator"),
    ],
)
def test_a_generator_of_another_discriminator(config, tmp_path, sizes, message):
    path = save_electra(tmp_path / "discriminator", config, "pretraining")
    generator = save_electra(tmp_path / "generator", config, "masked-lm", **sizes)
    with pytest.raises(InputError, match=message):
        task_build.build(
            change(pairs(config), model={"path": path, "generator": generator, "config": {}})
        )


def test_a_generator_for_a_model_without_one(config):
    with pytest.raises(InputError, match=r"model\.generator: found some/dir, expected null"):
        task_build.build(change(pairs(config), model={"generator": "some/dir"}))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 10, "num_attention_heads": 4}, "hidden_size=10 is not divisible"),
        ({"width": 10}, r"found generator=\{'width': 10\}, expected sizes by name"),
        (4, "found generator=4, expected sizes by name"),
        ({"hidden_size": 0}, "each a whole number of at least 1"),
        ({"num_hidden_layers": "2"}, "each a whole number of at least 1"),
        (None, r"num_attention_heads=2 cannot be divided by 4"),
    ],
)
def test_sizes_that_no_generator_has(config, sizes, message):
    shape = {**electra(config).model.config, "num_attention_heads": 2, "generator": sizes}
    with pytest.raises(InputError, match=message):
        task_build.build(change(electra(config), model={"config": shape}))


def test_electra_replaces_masks_by_samples_and_shares_its_embeddings(config):
    job, batch = batch_of(electra(config))
    params = jax.tree.map(np.array, job.state.params)
    assert set(params["generator"]["embeddings"]) == {"project"}
    task = registry.TASKS["pretraining"].prepare(electra(config), tokenizer(config))
    apply = models.apply_fn(task.model.parts(models.Compute())[0])
    names = ("input_ids", "segment_ids", "token_type_ids", "head_positions", "labels")
    inputs = {name: batch[name] for name in (*names, "label_weights")}
    out = apply(params, **inputs, key=jax.random.key(1))
    asked = np.zeros(batch["input_ids"].shape, bool)
    row, slot = np.nonzero(batch["label_weights"])
    asked[row, np.asarray(batch["head_positions"])[row, slot]] = True
    replaced = np.asarray(out.is_replaced)
    assert not (replaced & ~asked).any()
    assert replaced.sum() > 0.9 * asked.sum()  # nothing is learned yet
    again = apply(params, **inputs, key=jax.random.key(2)).is_replaced
    assert again.shape == replaced.shape
    # A generator that is certain of the labels replaces nothing.
    certain = {**params, "generator": jax.tree.map(np.zeros_like, params["generator"])}
    label = int(batch["labels"][row[0], slot[0]])
    certain["generator"]["mlm"]["bias"][label] = 100.0
    same = np.asarray(apply(certain, **inputs, key=jax.random.key(1)).is_replaced)
    labels = np.asarray(batch["labels"])[row, slot]
    assert same.sum() == (labels != label).sum()

    def judged(params):
        return apply(params, **inputs).logits.sum()

    def generated(params):
        return (apply(params, **inputs).prediction_logits ** 2).sum()

    grads = jax.grad(judged)(params)["generator"]
    assert all(not np.any(g) for g in jax.tree.leaves(grads))
    assert np.any(jax.grad(generated)(params)["embeddings"]["word"]["embedding"])


def test_the_loss_of_electra_is_that_of_the_plain_definition(config):
    job, batch = batch_of(electra(config))
    params = jax.tree.map(np.array, job.state.params)
    task = registry.TASKS["pretraining"].prepare(electra(config), tokenizer(config))
    apply = models.apply_fn(task.model.parts(models.Compute())[0])
    objective = task.objective(apply)
    loss, (metrics, _) = objective(params, task.whole_batch(batch), None)
    names = ("input_ids", "segment_ids", "token_type_ids", "head_positions", "labels")
    out = apply(params, **{name: batch[name] for name in (*names, "label_weights")})
    log_p = np.asarray(jax.nn.log_softmax(out.prediction_logits, -1), np.float64)
    each = -np.take_along_axis(log_p, np.asarray(batch["labels"])[..., None], -1)[..., 0]
    weights = np.asarray(batch["label_weights"])
    x, y = np.asarray(out.logits, np.float64), np.asarray(out.is_replaced)
    real = np.asarray(batch["segment_ids"]) > 0
    wrong = np.log1p(np.exp(np.where(y, -x, x)))[real].mean()
    expected = (each * weights).sum() / weights.sum() + 50 * wrong
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss"][1]) == pytest.approx(1.0)


def test_it_learns_to_fill_masks(config, tmp_path):
    """Each document is one word, over and over: what stands around a mask tells what it hides."""
    lines = [" ".join([word] * 20) for word in WORDS]
    for name in ("train.txt", "dev.txt"):
        (tmp_path / name).write_text("\n\n".join(lines))
    summary = loop.train(change(config, train={"steps": 150, "eval_every": 150}), task_build.build)
    assert summary["eval/masked_accuracy"] > 0.9


def batch_of(config):
    job = task_build.build(config)
    return job, next(job.loader.batches(LoaderState())).arrays


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_that_of_the_plain_definition(config, task):
    job, batch = batch_of(TASKS[task](config))
    params = jax.tree.map(np.array, job.state.params)
    _, metrics = job.train_step(job.state, batch)
    model_config = registry.TASKS[task].prepare(TASKS[task](config), tokenizer(config)).model.config
    apply = models.apply_fn(models.module_parts(model_config, task)[0])
    names = ("input_ids", "segment_ids", "token_type_ids", "head_positions", "pooled_positions")
    out = apply(params, **{name: batch[name] for name in names if name in batch})

    def mean(logits, labels, weights):
        each = -jax.nn.log_softmax(np.asarray(logits, np.float64), -1)
        each = np.take_along_axis(each, np.asarray(labels)[..., None], -1)[..., 0]
        return float((each * weights).sum() / weights.sum())

    logits = out.logits if task == "masked-lm" else out.prediction_logits
    expected = mean(logits, batch["labels"], batch["label_weights"])
    if task == "pretraining":
        expected += mean(
            out.seq_relationship_logits,
            batch["next_sentence_labels"],
            batch["next_sentence_weights"],
        )
    total, weight = metrics["loss"]
    assert float(total / weight) == pytest.approx(expected, rel=1e-5)


def tokenizer(config):
    return load_tokenizer(config.model.tokenizer)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "settings",
    [{"train": {"accumulation": 2}}, {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}}],
    ids=["accumulated", "sharded"],
)
def test_a_step_in_parts_or_over_devices_is_the_same_step(config, task, settings):
    same_step(TASKS[task](config), settings)


def test_electras_step_over_devices_is_the_same_step(config):
    same_step(electra(config), {"mesh": {"data": 2, "fsdp": 4, "tensor": 1}})


def same_step(config, settings):
    # Not Adam, whose first step makes much of gradients that are nothing but rounding.
    config = change(
        config,
        optimizer={"name": "sgd", "learning_rate": 0.1, "warmup": 0.0},
        data={"packing": False, "buckets": [32]},  # packed, the rows of a batch follow the mesh
    )
    results = []
    for one in (config, change(config, **settings)):
        job = task_build.build(one)
        batch = next(job.loader.batches(LoaderState())).arrays
        state, metrics = job.train_step(job.state, batch)
        results.append((jax.tree.map(np.asarray, (state.params, metrics)), batch))
    (whole, batch), (parts, other) = results
    np.testing.assert_array_equal(batch["input_ids"], other["input_ids"])
    flat = jax.tree.leaves_with_path
    for (path, a), (_, b) in zip(flat(whole), flat(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=str(path))


def test_stopped_and_taken_up_is_the_same_run(config, tmp_path, monkeypatch):
    steps = {"steps": 6, "save_every": 2, "epochs": 9.0}
    config = change(config, train=steps, masking={"unit": "span"})
    whole = loop.train(config, task_build.build)

    class StopError(Exception):
        pass

    other = change(config, run={"dir": str(tmp_path / "other")})
    make = task_build.build

    def failing(config):
        job = make(config)
        step, calls = job.train_step, []

        def train_step(state, batch):
            calls.append(1)
            if len(calls) == 5:
                raise StopError
            return step(state, batch)

        job.train_step = train_step
        return job

    with pytest.raises(StopError):
        loop.train(other, failing)
    again = loop.train(other, task_build.build)
    assert again["eval/loss"] == whole["eval/loss"]


def test_every_epoch_has_new_masks(config):
    job = task_build.build(config)
    first = next(job.loader.batches(LoaderState(epoch=0))).arrays
    second = next(job.loader.batches(LoaderState(epoch=1))).arrays
    assert not np.array_equal(first["head_positions"], second["head_positions"])


def test_weights_of_the_whole_batch(rng):
    batch = {"input_ids": np.zeros((4, 2)), "a": rng.random((4, 3)), "b": np.zeros((4, 3))}
    scaled = pretraining_objectives.whole_batch_weights(batch, one="a", two="b")
    np.testing.assert_allclose(scaled["one_scale"], np.full(4, 1 / batch["a"].sum()), rtol=1e-6)
    assert np.isfinite(scaled["two_scale"]).all()


def test_mistakes(config):
    with pytest.raises(
        InputError, match=r"train\.metric: found 'f1', expected one of loss, masked"
    ):
        task_build.build(change(config, train={"metric": "f1"}))
    small = {**config.model.config, "vocab_size": 50}
    with pytest.raises(InputError, match=r"the tokenizer has \d+ tokens, but the model 50"):
        task_build.build(change(config, model={"config": small}))
    roberta = {"model_type": "roberta", "vocab_size": 300, "max_position_embeddings": 66}
    with pytest.raises(InputError, match=r"model\.task: found pretraining, .* model is roberta"):
        task_build.build(pairs(change(config, model={"config": roberta})))


def test_what_a_tokenizer_lacks_is_told_before_text_is_tokenized(config, monkeypatch):
    def load_documents(*_, **__):
        raise AssertionError("text was read")

    monkeypatch.setattr(pretraining, "load_documents", load_documents)
    tokenizer = load_tokenizer(config.model.tokenizer)
    monkeypatch.setattr(type(tokenizer), "mask_token_id", None, raising=False)
    with pytest.raises(InputError, match=r"model\.tokenizer: .* has no mask token"):
        pretraining.prepare(config, tokenizer)
