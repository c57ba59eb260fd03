"""Sizes that cannot be are told from an estimate, before anything is allocated."""

import copy
import os
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest
from answering import load_model
from checkpoints import GOLDEN, load, random_params

import jaxllm
from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxllm.data.fit import check_batch
from jaxllm.errors import InputError
from jaxllm.models import module_parts
from jaxllm.nn.sharding import make_mesh, place
from jaxllm.pretrained import hf
from jaxllm.runtime import memory
from jaxllm.tasks.build import build
from jaxllm.tasks.evaluate import evaluate
from jaxllm.training.step import init_state

HUGE = 10**9


def test_a_container_has_less_than_its_machine(tmp_path, monkeypatch):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [tmp_path / name for name in ("absent", "max", "some")]
    limits[1].write_text("max\n")
    monkeypatch.setattr(memory, "_LIMITS", limits[:2])
    assert memory.of_machine() == whole
    limits[2].write_text("4096\n")
    monkeypatch.setattr(memory, "_LIMITS", limits)
    assert memory.of_machine() == 4096
    assert memory.of_device() == 4096 // jax.local_device_count()


def test_an_accelerator_says_what_it_has(monkeypatch):
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 7}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert memory.of_device() == 7
    monkeypatch.setattr(Device, "memory_stats", lambda self: None)
    assert memory.of_device() is None
    memory.check(HUGE**3, "anything", "none")  # nothing is known


def test_bytes_are_those_on_each_device(tiny_bert_config):
    _, abstract = module_parts(tiny_bert_config, "base")
    whole = sum(4 * x.size for x in jax.tree.leaves(abstract))
    assert memory.bytes_of(abstract) == whole
    assert memory.bytes_of(place(make_mesh(8, 1, 1), abstract)) == whole
    split = memory.bytes_of(place(make_mesh(1, 4, 2), abstract))
    assert whole / 8 <= split < whole / 4  # biases of the heads are whole


@pytest.mark.parametrize(
    "attributes",
    [
        {"model_type": "bert", "hidden_size": HUGE, "num_attention_heads": 10},
        {"model_type": "bert", "num_hidden_layers": 10**7},
        {"model_type": "bert", "intermediate_size": 10**400},
        {"model_type": "bert", "vocab_size": 10**12},
        {"model_type": "distilbert", "n_layers": 10**7},
        {"model_type": "electra", "embedding_size": 10**10},
        {"model_type": "modernbert", "num_hidden_layers": 10**7},
    ],
)
def test_a_config_of_a_model_that_nothing_holds(attributes):
    """transformers, which would make a list with an entry for each layer, is not asked."""
    message = r"the model's config: the parameters of \d+ layers .* would take at least [\d,.]+ GB"
    with pytest.raises(InputError, match=message):
        hf.load_config(None, **attributes)


def test_the_estimate_of_a_config_is_no_more_than_the_model(tiny_bert_config, monkeypatch):
    """A device that holds the model's parameters, and no more, is enough."""
    families = [tiny_bert_config.to_dict(), {"model_type": "electra"}, {"model_type": "distilbert"}]
    for attributes in [*families, {"model_type": "modernbert"}]:
        config = hf.load_config(None, **attributes)
        needed = memory.bytes_of(module_parts(config, "sequence-classification")[1])
        with monkeypatch.context() as patch:
            patch.setattr(memory, "of_device", lambda needed=needed: needed // jax.device_count())
            hf.load_config(None, **attributes)


def test_parameters_are_not_drawn_or_read(tmp_path, tiny_bert_config, monkeypatch):
    config = copy.copy(tiny_bert_config)
    config.max_position_embeddings = HUGE
    message = r"the parameters would take at least 128\.0 GB of memory on each of 8 CPU devices of"
    with pytest.raises(InputError, match=message):
        jaxllm.AutoModel.from_config(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(tmp_path)) + f": {message}"):
        jaxllm.AutoModel.from_pretrained(tmp_path)
    monkeypatch.setattr(memory, "of_device", lambda: 50_000)
    with pytest.raises(InputError, match="the parameters would take at least"):
        load(GOLDEN / "torch_base", "base")


def test_the_state_of_an_optimizer_counts(monkeypatch):
    params = {"embeddings": {"word": {"embedding": jnp.zeros((99, 32))}}}
    size = memory.bytes_of(params)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    monkeypatch.setattr(memory, "of_device", lambda: 2 * size)
    with pytest.raises(InputError, match="parameters and optimizer state would take at least"):
        init_state(params, optax.adam(1.0), mesh, seed=0, frozen=[])
    init_state(params, optax.sgd(1.0), mesh, seed=0, frozen=[])
    init_state(params, optax.adam(1.0), mesh, seed=0, frozen=["*"])


def test_a_batch_is_split_over_devices_and_parts(tiny_bert_config, monkeypatch):
    monkeypatch.setattr(memory, "of_device", lambda: 4 * 16 * (12 + 4 * 32))
    one, eight = make_mesh(devices=jax.devices()[:1]), make_mesh(8, 1, 1)
    check_batch("rows", 4, 16, tiny_bert_config, one)
    check_batch("rows", 32, 16, tiny_bert_config, eight)
    check_batch("rows", 8, 16, tiny_bert_config, one, parts=4)
    for mesh, rows in ((one, 5), (eight, 40)):
        with pytest.raises(InputError, match=f"rows: a batch of {rows} rows would take"):
            check_batch("rows", rows, 16, tiny_bert_config, mesh)


@pytest.fixture(scope="module")
def classifier(tiny_bert_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier") / "model"
    config = hf.load_config(tiny_bert_dir, id2label={0: "bad", 1: "good"})
    task = "sequence-classification"
    params = random_params(config, task)
    hf.save_pretrained(directory, params, config, task, tokenizer=tiny_bert_dir)
    return str(directory)


@pytest.fixture
def config(classifier, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nthe film was good,good\nthe book was bad,bad\n")
    data = {name: [str(tmp_path / "a.csv")] for name in ("train", "dev")}
    return Config(
        model=ModelConfig(path=classifier),
        data=DataConfig(**data, cache_dir=str(tmp_path / "cache"), max_length=16, packing=False),
        train=TrainConfig(batch_size=8, eval_batch_size=8, steps=1),
        run=RunConfig(dir=str(tmp_path / "run")),
    )


@pytest.mark.parametrize("key", ["batch_size", "eval_batch_size"])
@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_that_nothing_holds(config, key, packing):
    sizes = replace(config.train, **{key: 8 * HUGE})
    wrong = replace(config, data=replace(config.data, packing=packing), train=sizes)
    message = rf"train\.{key}: a batch of \d+ rows would take at least [\d,.]+ GB of memory"
    with pytest.raises(InputError, match=message):
        build(wrong)
    if key == "eval_batch_size":
        with pytest.raises(InputError, match=message):
            evaluate(wrong)


def test_a_batch_to_predict_that_nothing_holds(classifier):
    with pytest.raises(InputError, match="batch_size: a batch of 1000000000 rows would take"):
        load_model(classifier, HUGE)
