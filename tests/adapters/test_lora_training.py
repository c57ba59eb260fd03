"""Training adapters: what moves, what is saved, and going on from it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from configurations import change
from safetensors.numpy import load_file

import jaxllm
from jaxllm.config import checks
from jaxllm.config.fields import (
    Config,
    DataConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.data.loader import LoaderState
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.train_tokenizer import train_tokenizer
from jaxllm.errors import InputError
from jaxllm.models import module_parts
from jaxllm.nn.sharding import make_mesh
from jaxllm.pretrained import hf
from jaxllm.tasks import build as task_build
from jaxllm.tasks import evaluate as task_evaluate
from jaxllm.tasks.build import build
from jaxllm.trees import flatten, map_params

WORDS = ["good", "bad", "film", "plot", "loved", "hated"]
AB = ("lora_a", "lora_b")
ADAPTERS = {
    f"blocks/attention/{layer}/{name}"
    for layer in ("query", "value")
    for name in ("lora_a", "lora_b")
}
HEAD = {f"{layer}/{name}" for layer in ("pooler", "classifier") for name in ("kernel", "bias")}


@pytest.fixture(scope="module", autouse=True)
def as_many_devices_as_asked_for():
    """Programs for one device compile in a fraction of the time of those for all eight."""

    def make(data, fsdp, tensor):
        return make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])

    with pytest.MonkeyPatch.context() as patch:
        for module in (task_build, task_evaluate):
            patch.setattr(module, "make_mesh", make)
        yield


@pytest.fixture(scope="module")
def config(tiny_bert_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("lora")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(24)]
    rows = [f"{text},{('good' in text) * 1}" for text in texts]
    file = directory / "train.csv"
    file.write_text("\n".join(["text,label", *rows, ""]))
    cache = str(directory / "cache")
    return Config(
        ModelConfig(path=str(tiny_bert_dir)),
        DataConfig(train=[str(file)], dev=[str(file)], max_length=16, cache_dir=cache),
        OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup=0),
        TrainConfig(batch_size=8, steps=4, eval_every=2, save_every=2),
        MeshConfig(data=1),
        RunConfig(dir=str(directory / "run"), trackers=[], progress=False, log_every=1, keep=4),
        lora=LoraConfig(rank=4, dropout=0.1),
    )


@pytest.fixture(scope="module")
def run(config):
    """The directory of a finished run of four steps, its summary, and its config."""
    summary = jaxllm.train(config)
    return config.run.dir, summary


def at(directory, *names):
    return Path(directory).joinpath(*names)


def steps(config, number):
    """(losses, the state) after so many steps."""
    job = build(config)
    state, losses = job.state, []
    for _, batch in zip(range(number), job.loader.batches(LoaderState()), strict=False):
        state, metrics = job.train_step(state, batch.arrays)
        losses.append(float(metrics["loss"][0]))
    return losses, state


def test_only_adapters_and_the_head_are_trained_and_saved(run, tiny_bert_dir):
    directory, _ = run
    about = json.loads(at(directory, "checkpoints/step_00000004/jaxllm.json").read_text())
    arrays = about["about"]["arrays"]
    params = {path.removeprefix("params/") for path in arrays if path.startswith("params/")}
    assert params == ADAPTERS | HEAD
    for moment in ("mu", "nu"):
        assert sum(f"/{moment}/" in path for path in arrays) == len(params)
    assert not any("mlp" in path or "embeddings" in path for path in arrays)

    base, merged = (
        load_file(at(d, "model.safetensors")) for d in (tiny_bert_dir, at(directory, "model"))
    )
    differ = {n for n, x in base.items() if not np.array_equal(x, merged[f"bert.{n}"])}
    expected = {
        f"encoder.layer.{i}.attention.self.{layer}.weight"
        for i in (0, 1)
        for layer in ("query", "value")
    }
    assert differ - {"pooler.dense.weight", "pooler.dense.bias"} == expected


def test_the_summary_says_what_is_trained(run):
    directory, summary = run
    adapters = load_file(at(directory, "model/adapter/adapter_model.safetensors"))
    whole = load_file(at(directory, "model/model.safetensors"))
    trained = sum(x.size for x in adapters.values())
    assert summary["train/trained_parameters"] == trained
    matrices = sum(x.size for name, x in adapters.items() if "lora" in name)
    everything = sum(x.size for x in whole.values()) + matrices
    assert summary["train/trained_share"] == pytest.approx(trained / everything)


@pytest.mark.slow
def test_going_on_is_bit_for_bit_uninterrupted(config, run, tmp_path):
    """Adapter dropout included."""
    place = {"dir": str(tmp_path / "run")}
    jaxllm.train(change(config, run=place, train={"steps": 2}))
    jaxllm.train(change(config, run=place))
    for name in ("checkpoints/step_00000004/jaxllm.json",):
        assert at(place["dir"], name).exists()
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (
            at(place["dir"], "model", file).read_bytes() == at(run[0], "model", file).read_bytes()
        )


@pytest.mark.slow
def test_sharded_is_unsharded(config):
    """Adapters are split as the tables say, and the same steps come of it."""
    targets = ["blocks/*", "embeddings/*"]
    config = change(config, lora={"targets": targets}, optimizer={"name": "sgd"})
    found, state = steps(change(config, mesh={"data": 4, "fsdp": 2}), 3)
    expected, other = steps(change(config, mesh={"data": 8}), 3)
    whole = flatten(other.params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    split = set()
    for path, x in flatten(state.params).items():
        np.testing.assert_allclose(x, whole[path], rtol=1e-4, atol=1e-5, err_msg=path)
        assert whole[path].sharding.is_fully_replicated
        if not x.sharding.is_fully_replicated:
            split.add(path)
    assert {"blocks/attention/query/lora_a", "blocks/mlp/down/lora_b"} <= split


def test_an_adapter_is_evaluated_and_trained_on(config, run, tmp_path):
    directory, summary = run
    adapter = str(at(directory, "model/adapter"))
    found = jaxllm.evaluate(
        change(config, model={"adapter": adapter}, run={"dir": str(tmp_path / "evaluated")})
    )
    best = {name.removeprefix("eval/"): x for name, x in summary.items() if name[:5] == "eval/"}
    assert found["loss"] == pytest.approx(best["loss"], rel=1e-5)
    on = change(config, model={"adapter": adapter}, data={"labels": ["0", "1"]})
    job = build(on)
    assert flatten(job.state.params).keys() == ADAPTERS | HEAD
    assert job.evaluate(job.state.params)["loss"] == pytest.approx(best["loss"], rel=1e-5)
    whole = build(change(on, lora={"rank": 0}))
    assert whole.trained is None
    assert whole.evaluate(whole.state.params)["loss"] == pytest.approx(best["loss"], rel=1e-5)
    other = change(on, lora={"rank": 2})
    with pytest.raises(InputError, match=r"has rank 4 and adapts .*expected lora.rank=2"):
        build(other)
    named = change(on, data={"labels": None, "train": [named_labels(tmp_path)], "dev": []})
    with pytest.raises(InputError, match=r"data.labels: found null, but the head in"):
        build(named)


def named_labels(tmp_path):
    (tmp_path / "named.csv").write_text("text,label\ngood film,yes\nbad film,no\n")
    return str(tmp_path / "named.csv")


def test_a_head_that_would_stay_random(config):
    with pytest.raises(InputError, match=r"mlm/.* is not in the weights, and with lora.rank only"):
        build(change(config, model={"task": "masked-lm"}))


def test_a_decoder(config, tmp_path):
    """GPT-2: its output stays as it is; three adapters of ours are one of its fused layer."""
    (tmp_path / "text.txt").write_text("the cat sat\n\na hat\n\nthat cat and that hat\n\n" * 4)
    text = [str(tmp_path / "text.txt")]
    train_tokenizer(text, str(tmp_path / "tokenizer"), kind="character", vocab_size=99)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    size = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    gpt = hf.load_config(None, model_type="gpt2", **size, **ids)
    rng = np.random.default_rng(0)
    params = map_params(
        lambda path, x: 0.2 * rng.standard_normal(x.shape, np.float32),
        module_parts(gpt, "causal-lm")[1],
    )
    hf.save_pretrained(tmp_path / "base", params, gpt, "causal-lm", tokenizer=tokenizer)

    layers = [f"blocks/attention/{name}" for name in ("query", "key", "value")]
    own = change(
        config,
        model={"task": "causal-lm", "path": str(tmp_path / "base")},
        data={"train": text, "dev": [], "max_length": 16},
        lora={"targets": layers},
    )
    _, state = steps(own, 1)
    trained = flatten(state.params)
    assert trained.keys() == {f"{x}/{name}" for x in layers for name in AB}
    assert all(np.abs(x).max() > 0 for x in trained.values())  # B begins at zero
    build(own).export(state.params, tmp_path / "out")
    about = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    wanted = {"task_type": "CAUSAL_LM", "fan_in_fan_out": True, "target_modules": ["c_attn"]}
    assert (wanted | {"modules_to_save": None}).items() <= about.items()
    load = jaxllm.AutoModelForCausalLM.from_pretrained
    merged, adapted = (
        load(tmp_path / "out"),
        load(tmp_path / "base", adapter=tmp_path / "out" / "adapter"),
    )
    for path, x in flatten(merged.params).items():
        found = flatten(adapted.params)[path]
        np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"lora": {"rank": -1}}, "lora.rank: found -1"),
        ({"lora": {"alpha": 0.0}}, "lora.alpha: found 0.0"),
        ({"lora": {"alpha": float("nan")}}, "lora.alpha: found nan"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout: found 1.0"),
        ({"lora": {"targets": []}}, "lora.targets: found"),
        (
            {"model": {"path": None, "config": {"model_type": "bert"}}},
            "lora.rank: an adapter is of",
        ),
    ],
)
def test_values_out_of_range(config, sections, message):
    with pytest.raises(InputError, match=message):
        checks.check(change(config, **sections))
