"""Causal language modelling as a task: losses, the loop, resume, evaluation, mistakes."""

import json
import math
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from configurations import change

from jaxllm import models
from jaxllm.config.fields import (
    Config,
    DataConfig,
    LanguageModelConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.config.reading import check
from jaxllm.data.loader import LoaderState
from jaxllm.data.packing import Rows
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.train_tokenizer import train_tokenizer
from jaxllm.errors import InputError
from jaxllm.nn.sharding import make_mesh
from jaxllm.pretrained import hf
from jaxllm.runs import loop
from jaxllm.tasks import build as task_build
from jaxllm.tasks import causal_lm
from jaxllm.tasks import evaluate as task_evaluate
from jaxllm.tasks.evaluate import evaluate
from jaxllm.trees import map_params

TEXTS = ["the cat sat\non the mat", "a hat", "thé end", "that cat and that hat sat on the mat, too"]
SHAPE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "n_positions": 16,
    **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
}


@pytest.fixture(autouse=True)
def as_many_devices_as_asked_for(monkeypatch):
    """Programs for one device compile in a fraction of the time of those for all eight."""

    def make(data, fsdp, tensor):
        return make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])

    for module in (task_build, task_evaluate):
        monkeypatch.setattr(module, "make_mesh", make)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """A token a character."""
    directory = tmp_path_factory.mktemp("characters")
    (directory / "text.txt").write_text("\n\n".join(TEXTS))
    files = [str(directory / "text.txt")]
    train_tokenizer(files, str(directory / "out"), kind="character", vocab_size=99)
    return str(directory / "out")


@pytest.fixture(scope="module")
def gpt_dir(tokenizer_dir, tmp_path_factory):
    """A random GPT-2 of two layers, beside its tokenizer."""
    tokenizer = load_tokenizer(tokenizer_dir)
    config = hf.load_config(
        None, **SHAPE, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0
    )
    rng = np.random.default_rng(0)
    _, abstract = models.module_parts(config, "causal-lm")
    params = map_params(lambda path, x: 0.2 * rng.standard_normal(x.shape, np.float32), abstract)
    directory = tmp_path_factory.mktemp("gpt") / "model"
    hf.save_pretrained(directory, params, config, "causal-lm", tokenizer=tokenizer)
    return str(directory)


@pytest.fixture
def config(tmp_path, gpt_dir):
    """A run on TEXTS, many times over."""
    for name, times in (("train", 4), ("dev", 1)):
        rows = [json.dumps({"text": text}) + "\n" for text in TEXTS * times]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    return Config(
        model=ModelConfig(task="causal-lm", path=gpt_dir),
        data=DataConfig(
            train=[str(tmp_path / "train.jsonl")],
            dev=[str(tmp_path / "dev.jsonl")],
            max_length=16,
            cache_dir=str(tmp_path / "cache"),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        train=TrainConfig(batch_size=8, steps=4, eval_batch_size=4),
        mesh=MeshConfig(data=1),
        run=RunConfig(dir=str(tmp_path / "run"), progress=False, trackers=[], log_every=1),
    )


def surprise(model_dir, text, context=10**9):
    """float64 [n + 1]: -log p of each character and of the end, each with up to `context` tokens
    before it, by the logits of one row at a time.
    """
    import jaxllm

    model = jaxllm.AutoModelForCausalLM.from_pretrained(model_dir)
    ids = load_tokenizer(model_dir)(text)["input_ids"]
    places = [0, *ids, 0]
    found = []
    for i in range(1, len(places)):
        row = places[max(0, i - context) : i]
        padded = np.array([row + [0] * (16 - len(row))])  # what comes later is not seen
        logits = np.asarray(model(padded).logits[0, len(row) - 1], np.float64)
        found.append(np.log(np.exp(logits).sum()) - logits[places[i]])
    return np.array(found)


def test_evaluation_is_a_count_by_hand(config, gpt_dir, tmp_path):
    texts = TEXTS[1:3]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    values = evaluate(config)
    each = [surprise(gpt_dir, text) for text in texts]
    loss = np.concatenate(each).mean()
    assert values["loss"] == pytest.approx(loss, rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    size = sum(len(text.encode()) for text in texts)  # é has two
    assert size == 13
    bits = sum(x[:-1].sum() for x in each) / math.log(2)
    assert values["bits_per_byte"] == pytest.approx(bits / 13, rel=1e-5)
    report = (tmp_path / "run" / "evaluate" / "report.txt").read_text()
    assert "2 documents, 12 tokens, 13 bytes" in report
    assert re.search(rf"^bits_per_byte +{values['bits_per_byte']:.4f}$", report, re.M)


def test_a_stride_shows_each_token_more(config, gpt_dir, tmp_path):
    """Of 41 characters in windows of 16, the first in a window have less before them."""
    text = TEXTS[3]
    (tmp_path / "dev.jsonl").write_text(json.dumps({"text": text}))
    for stride, rows in ((1, "documents"), (16, "documents"), (1, "joined")):
        values = evaluate(change(config, lm={"stride": stride, "rows": rows}))
        if stride == 1:
            expected = surprise(gpt_dir, text, 16)
        else:
            by_context = {n: surprise(gpt_dir, text, n) for n in range(1, 17)}
            expected = np.array([by_context[i % 16 + 1][i] for i in range(len(text) + 1)])
        assert values["loss"] == pytest.approx(expected.mean(), rel=1e-5)


def of_batch(config):
    """(loss sum, its gradient, weight) of the first batch."""
    task = causal_lm.prepare(config, load_tokenizer(config.model.path))
    job = task_build.build(config)
    params = jax.tree.map(np.array, job.state.params)
    batch = next(job.loader.batches(LoaderState())).arrays
    objective = task.objective(models.apply_fn(task.model.parts(models.Compute())[0]))
    run = jax.value_and_grad(lambda p: objective(p, batch, None)[0])
    loss, grads = jax.jit(run)(params)
    return float(loss), grads, float(batch["label_weights"].sum())


def test_packed_documents_are_what_they_are_alone(config):
    """All texts in one batch, several a row, and one a row."""
    every = change(config, train={"batch_size": 64}, data={"train": config.data.dev})
    packed = of_batch(every)
    alone = of_batch(change(every, data={"packing": False, "buckets": [16]}))
    assert packed[2] == alone[2] == sum(len(text) + 1 for text in TEXTS)
    assert packed[0] == pytest.approx(alone[0], rel=1e-5)
    for a, b in zip(jax.tree.leaves(packed[1]), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_a_run_from_nothing_to_a_model_that_is_judged_again(config, tokenizer_dir, tmp_path):
    """It is told the sizes of the tokenizer by none, and learns."""
    new = change(
        config,
        model={"path": None, "config": SHAPE, "tokenizer": tokenizer_dir},
        train={"steps": 30, "eval_every": 30, "label_smoothing": 0.01},
        lm={"z_loss": 1e-4, "rows": "joined"},
    )
    check(new)
    summary = loop.train(new, task_build.build)
    names = {key[5:] for key in summary if key.startswith("eval/")}
    assert names == {"loss", "perplexity", "bits_per_byte", "accuracy"}
    size = len(load_tokenizer(tokenizer_dir))
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(size), abs=0.3)
    assert summary["eval/loss"] < 0.8 * math.log(size)
    written = json.loads((tmp_path / "run/model/config.json").read_text())
    assert (written["vocab_size"], written["eos_token_id"], written["bos_token_id"]) == (size, 0, 0)
    saved = change(
        new, model={"path": str(tmp_path / "run/model"), "tokenizer": None, "config": {}}
    )
    assert evaluate(saved)["loss"] == pytest.approx(summary["eval/loss"], rel=1e-5)


def test_smoothing_and_z_loss_are_in_the_training_loss_alone(config):
    other = change(config, train={"label_smoothing": 0.1}, lm={"z_loss": 0.1})
    mesh = task_build.make_mesh(1, 1, 1)
    dev, losses = [], []
    for one in (config, other):
        task = causal_lm.prepare(one, load_tokenizer(config.model.path))
        graph, abstract = task.model.parts(models.Compute())
        params = map_params(lambda path, x: np.full(x.shape, 0.1, np.float32), abstract)
        apply = models.apply_fn(graph)
        dev.append(task.evaluator(apply, mesh).metrics(params)["loss"])
        rows = Rows(np.arange(4), np.arange(5))
        batch = task.train.at(0).fill(rows, row_length=16, height=4, packing=True)
        losses.append(float(jax.jit(task.objective(apply))(params, batch, None)[0]))
    assert dev[0] == dev[1]
    assert losses[1] > losses[0] * 1.01


@pytest.mark.slow
def test_stopped_and_taken_up_is_the_same_run(config, tmp_path):
    steps = {"steps": 6, "save_every": 2, "epochs": 9.0}
    config = change(config, train=steps, lm={"rows": "joined"})
    whole = loop.train(config, task_build.build)

    class StopError(Exception):
        pass

    other = change(config, run={"dir": str(tmp_path / "other")})

    def failing(config):
        job = task_build.build(config)
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


@pytest.mark.slow
def test_a_step_over_devices_is_the_same_step(config):
    # Not Adam, whose first step makes much of gradients that are nothing but rounding.
    config = change(
        config,
        optimizer={"name": "sgd", "learning_rate": 0.1, "warmup": 0.0},
        data={"packing": False, "buckets": [16]},
    )
    results = []
    for mesh in ({"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        job = task_build.build(change(config, mesh=mesh))
        batch = next(job.loader.batches(LoaderState())).arrays
        state, metrics = job.train_step(job.state, batch)
        results.append(jax.tree.map(np.asarray, (state.params, metrics)))
    flat = jax.tree.leaves_with_path
    for (path, a), (_, b) in zip(flat(results[0]), flat(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=str(path))


def test_unknown_characters_in_the_dev_part_are_told(config, tmp_path, caplog):
    (tmp_path / "dev.jsonl").write_text(json.dumps({"text": "the Q"}))
    with caplog.at_level("WARNING", "jaxllm"):
        causal_lm.prepare(config, load_tokenizer(config.model.path))
    assert "data.dev: 1 of 5 tokens are unknown to the tokenizer" in caplog.text


def test_mistakes_of_models_and_tokenizers(config, tiny_bert_dir, tokenizer_dir):
    encoder = change(config, model={"path": str(tiny_bert_dir), "tokenizer": tokenizer_dir})
    with pytest.raises(
        InputError, match=r"the model is bert, an encoder, .*set is_decoder: true.* gpt2, .* masked"
    ):
        task_build.build(encoder)
    distilbert = change(
        config,
        model={"path": None, "config": {"model_type": "distilbert"}, "tokenizer": tokenizer_dir},
    )
    with pytest.raises(InputError, match=r"the model is distilbert, .*take one of bert, .*gpt2, l"):
        task_build.build(distilbert)
    turned = {
        "path": str(tiny_bert_dir),
        "tokenizer": tokenizer_dir,
        "config": {"is_decoder": True},
    }
    assert causal_lm.prepare(
        change(config, model=turned), load_tokenizer(tokenizer_dir)
    ).model.config.is_decoder
    with pytest.raises(InputError, match=r"max_length: found 32, expected at most the model's 16"):
        task_build.build(change(config, data={"max_length": 32}))
    with pytest.raises(InputError, match=r"model\.tokenizer: .* no end-of-text token"):
        task_build.build(change(config, model={"tokenizer": str(tiny_bert_dir)}))
    with pytest.raises(InputError, match=r"train\.metric: found 'f1', expected one of loss, perp"):
        task_build.build(change(config, train={"metric": "f1"}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"lm": {"stride": 17}}, r"lm\.stride: found 17, expected 1 to data\.max_length=16"),
        ({"lm": {"stride": 0}}, r"lm\.stride: found 0, expected 1 to"),
        ({"lm": {"z_loss": -1.0}}, r"lm\.z_loss: found -1\.0, expected at least 0"),
        ({"lm": {"z_loss": math.nan}}, r"lm\.z_loss: found nan, expected at least 0"),
        ({"data": {"corpus": "stdlib"}}, r"data\.train: found .*, expected nothing beside data"),
        ({"masking": {"words": ".seg"}}, r"masking\.words: found '\.seg', expected null"),
        ({"train": {"class_weights": [1.0, 2.0]}}, r"train\.class_weights: .* expected null"),
        (
            {"model": {"task": "masked-lm"}, "lm": {"rows": "joined"}},
            r"lm\.rows: found 'joined', expected documents, as model\.task is masked-lm",
        ),
        (
            {
                "model": {"task": "sequence-classification"},
                "data": {"corpus": "stdlib", "train": []},
            },
            r"data\.corpus: found 'stdlib', expected null",
        ),
    ],
)
def test_settings_that_do_not_fit(config, sections, message):
    with pytest.raises(InputError, match=message):
        check(change(config, **sections))


def test_the_corpus_alone_is_enough(config):
    check(replace(config, data=DataConfig(corpus="stdlib"), lm=LanguageModelConfig("joined", 5)))


def test_replies_are_learned_and_judged(config, gpt_dir, tmp_path):
    """The loss is over the characters of the reply and its end, what is before them is seen."""
    prompt, reply = "the cat", " sat"
    for name in ("train", "dev"):
        row = {"prompt": prompt, "completion": reply}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    asked = change(
        config,
        data={"text": "prompt", "text_pair": "completion"},
        train={"metric": "exact_match"},
    )
    check(asked)
    values = evaluate(asked)
    # A document has its beginning in front; a prompt has what the tokenizer puts there: nothing.
    import jaxllm

    model = jaxllm.AutoModelForCausalLM.from_pretrained(gpt_dir)
    ids = load_tokenizer(gpt_dir)(prompt + reply)["input_ids"] + [0]
    logits = np.asarray(model(np.array([ids])).logits[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.array([log_p[i - 1, ids[i]] for i in range(len(prompt), len(ids))])
    assert values["loss"] == pytest.approx(each.mean(), rel=1e-5)
    bits = each[:-1].sum() / math.log(2)
    assert values["bits_per_byte"] == pytest.approx(bits / len(reply), rel=1e-5)
    likeliest = log_p.argmax(-1)[len(prompt) - 1 : -1].tolist()
    assert values["exact_match"] == float(likeliest == ids[len(prompt) :])
    report = (tmp_path / "run" / "evaluate" / "report.txt").read_text()
    assert "1 conversations, 4 tokens of replies, 4 bytes" in report


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"lm": {"chat": True}, "data": {"text_pair": "b"}}, r"data\.text_pair: .*as lm\.chat is"),
        ({"lm": {"chat": True, "rows": "joined"}}, r"lm\.rows: found 'joined', expected documents"),
        ({"lm": {"stride": 3}, "data": {"text_pair": "b"}}, r"lm\.stride: found 3, expected null"),
        ({"lm": {"chat": True}, "data": {"weights": [1.0]}}, r"data\.weights: .* expected null"),
        ({"lm": {"chat": True}, "data": {"streaming": True}}, r"data\.streaming: .*expected false"),
        (
            {"lm": {"chat": True}, "data": {"corpus": "stdlib", "train": []}},
            r"corpus: .* null, as lm",
        ),
        (
            {"model": {"task": "masked-lm"}, "lm": {"chat": True}},
            r"lm\.chat: found True, expected F",
        ),
    ],
)
def test_settings_that_do_not_fit_replies(config, sections, message):
    with pytest.raises(InputError, match=message):
        check(change(config, **sections))


def test_training_on_the_corpus_needs_no_file(tmp_path):
    """What is missing is told next: the tokenizer."""
    import jaxllm

    run = RunConfig(dir=str(tmp_path / "run"))
    model = ModelConfig(task="causal-lm", config={"model_type": "gpt2"})
    with pytest.raises(InputError, match=r"model\.tokenizer: found null"):
        jaxllm.train(Config(model=model, data=DataConfig(corpus="stdlib"), run=run))
