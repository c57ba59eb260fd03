"""Writing checkpoints, whole or not at all, and converting them, verified."""

import copy
import errno
import json
import os
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
from checkpoints import GOLDEN, assert_same, load, random_params, siblings
from encoders import PAIRS, tiny_config
from safetensors.numpy import load_file, save_file

from jaxllm.errors import InputError
from jaxllm.models import FAMILIES
from jaxllm.pretrained import formats, hf, saving
from jaxllm.trees import map_params

TASK = "sequence-classification"


@pytest.mark.parametrize("weights", ["safetensors", "flax"])
@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_saved_is_loaded_again(tmp_path, family, task, weights):
    config = tiny_config(family, task)
    params = random_params(config, task)
    target = tmp_path / "a" / "model"
    hf.save_pretrained(target, params, config, task, weights=weights)
    again = load(target, task)
    assert_same(again.params, params)
    assert again.config.architectures == [FAMILIES[family].table.architecture(task)]
    attributes = json.loads((target / "config.json").read_text())
    assert (attributes["model_type"], attributes["dtype"]) == (family, "float32")
    table = FAMILIES[family].table
    prefix = table.prefixes.get(task, table.prefix)
    bare = not any(name.startswith(prefix) for name in formats.read_tensors(target))
    assert bare == (task == "base")
    assert siblings(target) == ["model"]
    umask = os.umask(0)
    os.umask(umask)
    assert all(file.stat().st_mode & 0o777 == 0o666 & ~umask for file in target.iterdir())


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("torch_sequence_classification", TASK),
        ("flax_sequence_classification", TASK),
        ("flax_bert_pretraining", "pretraining"),
        ("flax_roberta_sequence_classification", TASK),
        ("flax_xlm_roberta_masked_lm", "masked-lm"),
        ("flax_distilbert_masked_lm", "masked-lm"),
        ("flax_distilbert_question_answering", "question-answering"),
        ("flax_electra_pretraining", "pretraining"),
        ("flax_electra_multiple_choice", "multiple-choice"),
        ("flax_gpt2_causal_lm", "causal-lm"),
        ("flax_llama_causal_lm", "causal-lm"),
    ],
)
def test_names_are_those_of_transformers(tmp_path, name, task):
    """The golden loaded and saved has the golden's names, shapes and bytes."""
    model = load(GOLDEN / name, task)
    weights = "flax" if name.startswith("flax") else "safetensors"
    hf.save_pretrained(tmp_path / "out", model.params, model.config, task, weights=weights)
    saved = formats.read_tensors(tmp_path / "out")
    expected = formats.read_tensors(GOLDEN / name)
    assert saved.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(saved[key].read(), tensor.read(), err_msg=key)


@pytest.mark.parametrize(
    ("weights", "suffix"), [("safetensors", "safetensors"), ("flax", "msgpack")]
)
def test_large_weights_are_sharded(tmp_path, tiny_bert_config, weights, suffix):
    params = random_params(tiny_bert_config, "masked-lm", 0)
    target = tmp_path / "model"
    hf.save_pretrained(
        target, params, tiny_bert_config, "masked-lm", weights=weights, max_shard_bytes=20_000
    )
    shards = sorted(target.glob(f"*-of-*.{suffix}"))
    index = json.loads(next(target.glob("*.index.json")).read_text())
    assert len(shards) > 3
    assert set(index["weight_map"].values()) == {file.name for file in shards}
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert_same(load(target, "masked-lm").params, params)


def test_labels_and_tokenizer_are_saved(tmp_path, tiny_bert_config, tiny_tokenizer_dir):
    from transformers import BertTokenizerFast

    config = hf.load_config(
        None,
        **tiny_bert_config.to_diff_dict()
        | {"id2label": {0: "bad", 1: "good"}, "problem_type": "single_label_classification"},
    )
    params = random_params(config, "sequence-classification", 0)
    tokenizer = BertTokenizerFast(vocab=str(tiny_tokenizer_dir / "vocab.txt"))
    hf.save_pretrained(tmp_path / "model", params, config, TASK, tokenizer=tokenizer)
    again = hf.load_config(tmp_path / "model")
    assert again.id2label == {0: "bad", 1: "good"}
    assert again.problem_type == "single_label_classification"
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    hf.save_pretrained(tmp_path / "copy", params, config, TASK, tokenizer=tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_unknown_format(tmp_path, tiny_bert_config):
    with pytest.raises(InputError, match=r"weights='pickle' cannot be written; expected one of"):
        hf.save_pretrained(tmp_path / "out", {}, tiny_bert_config, "base", weights="pickle")


def test_incomplete_parameters_are_not_saved(tmp_path, tiny_bert_config):
    params = random_params(tiny_bert_config, "sequence-classification", 0)
    del params["pooler"]["bias"]
    params["extra"] = np.zeros(3)
    with pytest.raises(InputError, match=r"missing \['pooler/bias'\], unexpected \['extra'\]"):
        hf.save_pretrained(tmp_path / "out", params, tiny_bert_config, TASK)
    assert not (tmp_path / "out").exists()


def word_table(params):
    return params["embeddings"]["word"]


def test_parameters_that_could_not_be_loaded_are_not_saved(tmp_path, tiny_bert_config):
    """A table that was resized, whole numbers, NaN, or a config that was spoilt."""
    config = copy.deepcopy(tiny_bert_config)

    def save(change, message):
        params = random_params(config, "base", 0)
        change(params)
        with pytest.raises(InputError, match=message):
            hf.save_pretrained(tmp_path / "out", params, config, "base")

    resized = np.zeros((101, 32), np.float32)
    save(
        lambda params: word_table(params).update(embedding=resized),
        r"word/embedding: found float32\[101, 32\], expected \[99, 32\]; set the config",
    )
    save(
        lambda params: word_table(params).update(embedding=np.zeros((99, 32), np.int32)),
        r"word/embedding: found int32\[99, 32\]",
    )
    save(
        lambda params: np.put(word_table(params)["embedding"], 7, np.nan),
        "parameter embeddings/word/embedding holds NaN or infinite numbers, and nothing is written",
    )
    config.hidden_dropout_prob = 1.0
    save(lambda params: None, r"hidden_dropout_prob=1\.0")
    assert list(tmp_path.iterdir()) == []
    config.hidden_dropout_prob, config.vocab_size = 0.1, 101
    params = random_params(config, "base", 0)
    word_table(params)["embedding"] = resized
    hf.save_pretrained(tmp_path / "out", params, config, "base")
    assert_same(load(tmp_path / "out", "base").params, params)


def test_earlier_model_is_replaced_and_other_files_are_not(tmp_path, tiny_bert_config):
    target = tmp_path / "model"
    old, new = (random_params(tiny_bert_config, "base", seed) for seed in (0, 1))
    hf.save_pretrained(target, old, tiny_bert_config, "base", weights="flax")
    hf.save_pretrained(target, new, tiny_bert_config, "base")
    assert not (target / "flax_model.msgpack").exists()
    assert_same(load(target, "base").params, new)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no saved model and is left as it is"):
        hf.save_pretrained(target, old, tiny_bert_config, "base")
    assert_same(load(target, "base").params, new)
    assert (target / "notes.txt").read_text() == "mine"
    assert siblings(target) == ["model"]
    with pytest.raises(InputError, match="is a file"):
        hf.save_pretrained(target / "notes.txt", old, tiny_bert_config, "base")


def test_full_disk_leaves_the_earlier_model(tmp_path, tiny_bert_config, monkeypatch):
    target = tmp_path / "model"
    old, new = (random_params(tiny_bert_config, "base", seed) for seed in (0, 1))
    hf.save_pretrained(target, old, tiny_bert_config, "base")

    def full(file, arrays):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(saving._WRITERS, "safetensors", full)
    for directory in (target, tmp_path / "other"):
        with pytest.raises(InputError, match=r"No space left on device.*Nothing was changed"):
            hf.save_pretrained(directory, new, tiny_bert_config, "base")
    assert_same(load(target, "base").params, old)
    assert siblings(target) == ["model"]


def test_disk_that_is_really_full(tmp_path, tiny_bert_config):
    """safetensors reports a failed write in an exception of its own."""
    params = random_params(tiny_bert_config, "base", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        for weights in ("safetensors", "flax"):
            with pytest.raises(InputError, match=r"could not write .*File too large"):
                hf.save_pretrained(
                    tmp_path / "model", params, tiny_bert_config, "base", weights=weights
                )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "architecture", "task"),
    [
        ("torch_base", "BertModel", "base"),
        ("torch_pretraining", "BertForPreTraining", "pretraining"),
        (
            "torch_sequence_classification",
            "BertForSequenceClassification",
            "sequence-classification",
        ),
    ],
)
def test_convert_there_and_back(tmp_path, name, architecture, task):
    report = hf.convert(GOLDEN / name, tmp_path / "flax", "flax")
    original = load_file(GOLDEN / name / "model.safetensors")
    assert (report.architecture, report.tensors, report.task) == (
        architecture,
        len(original),
        task,
    )
    assert (tmp_path / "flax" / "flax_model.msgpack").is_file()
    hf.convert(tmp_path / "flax", tmp_path / "back", "safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == original.keys()
    for key, array in original.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    config = json.loads((GOLDEN / name / "config.json").read_text())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


def test_convert_modernises_names_and_keeps_dtypes(tmp_path, tiny_tokenizer_dir):
    source = tmp_path / "old"
    shutil.copytree(GOLDEN / "torch_pretraining", source)
    tensors = load_file(source / "model.safetensors")
    word = "bert.embeddings.word_embeddings.weight"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x.astype(np.float16)
        for name, x in tensors.items()
    } | {
        "cls.predictions.decoder.weight": tensors[word].astype(np.float16),
        "bert.embeddings.position_ids": np.arange(24)[None],
    }
    save_file(old, source / "model.safetensors")
    shutil.copy(tiny_tokenizer_dir / "vocab.txt", source)
    (source / "1_Pooling").mkdir()
    (source / "2_Dense").mkdir()
    beside = ["jaxllm.json", "modules.json", "config_sentence_transformers.json"]
    beside += ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    for name in beside:
        (source / name).write_text(name)
    report = hf.convert(source, tmp_path / "new", "safetensors")
    new = load_file(tmp_path / "new" / "model.safetensors")
    assert new.keys() == tensors.keys()
    assert all(x.dtype == np.float16 for x in new.values())
    assert report.dropped == ["bert.embeddings.position_ids", "cls.predictions.decoder.weight"]
    assert (tmp_path / "new" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    assert [(tmp_path / "new" / name).read_text() for name in beside] == beside


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("torch_base", "BertModel"),
        ("torch_pretraining", "BertForPreTraining"),
        ("torch_sequence_classification", "BertForSequenceClassification"),
        ("flax_roberta_sequence_classification", "RobertaForSequenceClassification"),
    ],
)
def test_convert_infers_an_architecture_that_is_not_said(tmp_path, name, architecture):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / name, source)
    attributes = json.loads((source / "config.json").read_text())
    del attributes["architectures"]
    (source / "config.json").write_text(json.dumps(attributes))
    assert hf.convert(source, tmp_path / "out", "safetensors").architecture == architecture
    assert hf.load_config(tmp_path / "out").architectures == [architecture]


def test_convert_refuses_tensors_it_does_not_know(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "torch_base", source)
    tensors = load_file(source / "model.safetensors") | {"adapter.weight": np.zeros(3, np.float32)}
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=r"adapter\.weight; they cannot be converted"):
        hf.convert(source, tmp_path / "out", "flax")
    assert not (tmp_path / "out").exists()


def test_convert_target_must_be_new(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is not empty; give a new directory"):
        hf.convert(GOLDEN / "torch_base", tmp_path / "out", "flax")
    with pytest.raises(InputError, match="weights='bin' cannot be written"):
        hf.convert(GOLDEN / "torch_base", tmp_path / "new", "bin")


def test_convert_verifies_what_it_wrote(tmp_path, monkeypatch):
    """A writer that spoils one bit of one tensor is found out, and nothing appears."""
    write = saving._WRITERS["flax"]

    def spoil(file, arrays):
        name = "encoder/layer/1/output/dense/bias"
        arrays = {**arrays, name: arrays[name].copy()}
        arrays[name].view(np.uint32)[7] ^= 1
        write(file, arrays)

    monkeypatch.setitem(saving._WRITERS, "flax", spoil)
    with pytest.raises(
        InputError, match=r"differ from their sources: bert\.encoder\.layer\.1\.output\.dense\.bias"
    ):
        hf.convert(GOLDEN / "torch_base", tmp_path / "out", "flax")
    assert list(tmp_path.iterdir()) == []


def test_convert_compares_outputs(tmp_path, monkeypatch):
    """Tensors that are equal but read into other places give other outputs."""
    from jaxllm.pretrained import converting, loading

    original = loading.load

    def swap(family, tensors, abstract, where, init, **options):
        params, report = original(family, tensors, abstract, where, init, **options)
        if where.name.startswith("."):
            params = map_params(lambda path, x: x + 1 if path == "pooler/bias" else x, params)
        return params, report

    monkeypatch.setattr(converting.loading, "load", swap)
    with pytest.raises(InputError, match="base model's outputs differ by up to"):
        hf.convert(GOLDEN / "torch_base", tmp_path / "out", "flax")
    assert list(tmp_path.iterdir()) == []
