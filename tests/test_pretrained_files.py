"""Where checkpoints are, what their configs may say, and writing and converting them."""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.errors import InputError
from jaxllm.models import module_parts
from jaxllm.pretrained import formats, hf, location, saving
from jaxllm.sharding import map_params

GOLDEN = Path(__file__).parent / "golden"
HUB_ID = "jaxllm-tests/tiny"


def params_of(directory, task):
    config = hf.load_config(directory)
    _, abstract = module_parts(config, task)
    return hf.load_params(directory, config, abstract, init=lambda path: 1 / 0)[0], config


def random_params(config, task, seed=0):
    _, abstract = module_parts(config, task)
    rng = np.random.default_rng(seed)
    return map_params(lambda path, x: rng.standard_normal(x.shape, np.float32), abstract)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def siblings(directory):
    return sorted(file.name for file in directory.parent.iterdir())


# ---- where


def test_package_is_found_but_not_imported(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "torch_base", tmp_path / "a_package" / "some" / "model")
    (tmp_path / "a_package" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = hf.resolve("package:a_package/some/model")
    assert found == tmp_path / "a_package" / "some" / "model"
    assert "a_package" not in sys.modules
    with pytest.raises(InputError, match="a_package is installed, but has no folder other"):
        hf.resolve("package:a_package/other")


def test_package_that_is_missing():
    with pytest.raises(InputError, match="`pip install no-such-weights`"):
        hf.resolve("package:no_such_weights/model")


@pytest.mark.parametrize("path", ["package:", "package:a.b/c", "package:/etc"])
def test_package_with_an_odd_name(path):
    with pytest.raises(InputError, match="no package name"):
        hf.resolve(path)


def test_path_that_is_no_directory(tmp_path):
    with pytest.raises(InputError, match="does not exist; expected a directory"):
        hf.resolve(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; give the directory it is in"):
        hf.resolve(tmp_path / "file")


def test_directory_that_is_empty_or_lacks_files(tmp_path):
    with pytest.raises(
        InputError, match=r"is empty; looked for config\.json and model\.safetensors"
    ):
        hf.resolve(tmp_path)
    (tmp_path / "README.md").touch()
    with pytest.raises(InputError, match=r"has no config\.json"):
        hf.load_config(tmp_path)
    with pytest.raises(
        InputError, match=r"looked for model\.safetensors, model\.safetensors\.index"
    ):
        formats.read_tensors(hf.resolve(tmp_path))


def test_hub_id_that_cannot_be_reached():
    with pytest.raises(InputError) as caught:
        hf.resolve("google-bert/bert-base-uncased")
    for text in (
        "google-bert/bert-base-uncased",
        "cannot be reached",
        "package:",
        "HF_HOME",
        "local",
    ):
        assert text in str(caught.value)


@pytest.fixture
def hub_cache():
    """A cache as huggingface_hub leaves it after a download, with one repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = Path(HF_HUB_CACHE) / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(GOLDEN / "torch_base", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    yield snapshot
    shutil.rmtree(repository)


def test_hub_id_in_the_cache(hub_cache):
    assert hf.resolve(HUB_ID).resolve() == hub_cache.resolve()
    params_of(hf.resolve(HUB_ID), "base")


def test_hub_fetches_one_set_of_weights(hub_cache, monkeypatch):
    """Of a repository with msgpack and pickle: only the msgpack; for a tokenizer, neither."""
    import huggingface_hub

    (hub_cache / "model.safetensors").unlink()
    asked = []

    def snapshot_download(repository, *, allow_patterns):
        assert repository == HUB_ID
        asked.append(allow_patterns)
        if any("msgpack" in pattern for pattern in allow_patterns):
            (hub_cache / "flax_model.msgpack").touch()
        return str(hub_cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    hf.resolve(HUB_ID)
    assert asked == [location.SMALL_FILES, *location.WEIGHT_PATTERNS[:2]]
    (hub_cache / "flax_model.msgpack").unlink()
    asked.clear()
    hf.resolve(HUB_ID, weights=False)
    assert asked == [location.SMALL_FILES]


def test_hub_errors_say_what_to_do(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None, status_code=404)
    for error, message in (
        (errors.RepositoryNotFoundError("no", response=response), "check the spelling"),
        (errors.GatedRepoError("no", response=response), "hf auth login"),
        (ConnectionError("reset by peer"), "reset by peer"),
    ):

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(InputError, match=message) as caught:
            hf.resolve("some/model")
        assert "package:" in str(caught.value)


# ---- config


def write_config(directory, **changes):
    attributes = json.loads((GOLDEN / "torch_base" / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(attributes))
    return directory


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", True),
        ("is_encoder_decoder", True),
        ("add_cross_attention", True),
        ("hidden_act", "gelu_fast"),
        ("chunk_size_feed_forward", 8),
        ("pruned_heads", {"1": [0]}),
        ("tie_word_embeddings", False),
        ("per_layer_config", {"0": {"hidden_size": 3}}),
        ("quantization_config", {"bits": 8}),
        ("auto_map", {"AutoModel": "modeling.Other"}),
        ("rope_theta", 10000.0),
        ("use_bias", False),
    ],
)
def test_attributes_that_change_the_numbers_are_refused(tmp_path, name, value):
    write_config(tmp_path, **{name: value})
    with pytest.raises(InputError, match=rf"config\.json: .* {name}="):
        hf.load_config(tmp_path)
    with pytest.raises(InputError, match=f"{name}="):
        hf.load_config(GOLDEN / "torch_base", **{name: value})


def test_all_refused_attributes_are_named_at_once(tmp_path):
    write_config(tmp_path, is_decoder=True, rope_theta=1.0)
    with pytest.raises(InputError, match=r"is_decoder=True .*rope_theta=1\.0"):
        hf.load_config(tmp_path)


def test_harmless_attributes_are_kept(tmp_path):
    """What real configs carry: bert-base-chinese's, cross-encoders', transformers 2's."""
    write_config(
        tmp_path,
        directionality="bidi",
        pooler_fc_size=768,
        pooler_type="first_token_transform",
        position_embedding_type="absolute",
        gradient_checkpointing=False,
        torch_dtype="float16",
        sbert_ce_default_activation_function="torch.nn.modules.linear.Identity",
        num_beams=1,
        _commit_hash="abc",
        some_option_left_unset=None,
    )
    config = hf.load_config(tmp_path)
    assert (config.hidden_size, config.model_type) == (32, "bert")
    assert config.dtype is None  # transformers would import torch for it


def test_checkpoint_of_another_architecture(tmp_path):
    write_config(tmp_path, model_type="roberta")
    with pytest.raises(
        InputError,
        match="model_type='roberta', a checkpoint of another architecture; implemented: bert",
    ):
        hf.load_config(tmp_path)


def test_model_type_of_configs_that_do_not_say(tmp_path):
    attributes = json.loads((GOLDEN / "torch_base" / "config.json").read_text())
    del attributes["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    assert hf.load_config(tmp_path).model_type == "bert"
    del attributes["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    with pytest.raises(InputError, match="model_type=None"):
        hf.load_config(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"bert"'])
def test_config_that_is_no_object(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json (is not JSON|holds a)"):
        hf.load_config(tmp_path)


def test_config_of_wrong_types_and_sizes(tmp_path):
    with pytest.raises(InputError, match=r"hidden_size.*expected int, got str"):
        hf.load_config(write_config(tmp_path, hidden_size="32"))
    with pytest.raises(
        InputError, match="hidden_size=32 is not divisible by num_attention_heads=5"
    ):
        hf.load_config(write_config(tmp_path, num_attention_heads=5))


def test_misspelt_override():
    with pytest.raises(InputError, match=r"num_label=3 \(unknown\)"):
        hf.load_config(GOLDEN / "torch_base", num_label=3)


def test_label_overrides(caplog, monkeypatch):
    source = GOLDEN / "torch_sequence_classification"  # three labels
    assert hf.load_config(source).num_labels == 3
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    five = hf.load_config(source, num_labels=5)
    assert (five.num_labels, five.id2label[4]) == (5, "LABEL_4")
    named = hf.load_config(source, id2label={0: "bad", 1: "good"})
    assert (named.num_labels, named.label2id) == (2, {"bad": 0, "good": 1})
    both = hf.load_config(source, num_labels=2, id2label={0: "bad", 1: "good"})
    assert both.id2label == {0: "bad", 1: "good"}
    assert hf.load_config(source, problem_type="regression", num_labels=1).num_labels == 1
    assert caplog.records == []  # transformers warns of labels that contradict each other


def test_config_without_a_path():
    config = hf.load_config(None, model_type="bert", hidden_size=32, num_attention_heads=2)
    assert (config.hidden_size, config.num_hidden_layers) == (32, 12)
    with pytest.raises(InputError, match="model_type=None"):
        hf.load_config(None, hidden_size=32)


# ---- writing


@pytest.mark.parametrize("weights", ["safetensors", "flax"])
@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        ("base", "BertModel"),
        ("masked-lm", "BertForMaskedLM"),
        ("sequence-classification", "BertForSequenceClassification"),
    ],
)
def test_saved_is_loaded_again(tmp_path, tiny_bert_config, task, architecture, weights):
    params = random_params(tiny_bert_config, task)
    target = tmp_path / "a" / "model"
    hf.save_pretrained(target, params, tiny_bert_config, weights=weights)
    again, config = params_of(target, task)
    assert_same(again, params)
    assert config.architectures == [architecture]
    attributes = json.loads((target / "config.json").read_text())
    assert (attributes["model_type"], attributes["dtype"]) == ("bert", "float32")
    names = formats.read_tensors(target)
    bare = not any(name.startswith(("bert.", "bert/")) for name in names)
    assert bare == (task == "base")
    assert siblings(target) == ["model"]
    umask = os.umask(0)
    os.umask(umask)
    assert all(file.stat().st_mode & 0o777 == 0o666 & ~umask for file in target.iterdir())


@pytest.mark.parametrize("weights", ["safetensors", "flax"])
def test_names_are_those_of_transformers(tmp_path, weights):
    """The golden loaded and saved has the golden's names, shapes and bytes."""
    golden = {
        "safetensors": "torch_sequence_classification",
        "flax": "flax_sequence_classification",
    }
    params, config = params_of(GOLDEN / golden[weights], "sequence-classification")
    hf.save_pretrained(tmp_path / "out", params, config, weights=weights)
    saved = formats.read_tensors(tmp_path / "out")
    expected = formats.read_tensors(GOLDEN / golden[weights])
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(saved[name].read(), tensor.read(), err_msg=name)


@pytest.mark.parametrize(
    ("weights", "suffix"), [("safetensors", "safetensors"), ("flax", "msgpack")]
)
def test_large_weights_are_sharded(tmp_path, tiny_bert_config, weights, suffix):
    params = random_params(tiny_bert_config, "masked-lm", 0)
    target = tmp_path / "model"
    hf.save_pretrained(target, params, tiny_bert_config, weights=weights, max_shard_bytes=20_000)
    shards = sorted(target.glob(f"*-of-*.{suffix}"))
    index = json.loads(next(target.glob("*.index.json")).read_text())
    assert len(shards) > 3
    assert set(index["weight_map"].values()) == {file.name for file in shards}
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert_same(params_of(target, "masked-lm")[0], params)


def test_labels_and_tokenizer_are_saved(tmp_path, tiny_bert_config, tiny_tokenizer_dir):
    from transformers import BertTokenizerFast

    config = hf.load_config(
        None,
        **tiny_bert_config.to_diff_dict()
        | {"id2label": {0: "bad", 1: "good"}, "problem_type": "single_label_classification"},
    )
    params = random_params(config, "sequence-classification", 0)
    tokenizer = BertTokenizerFast(vocab=str(tiny_tokenizer_dir / "vocab.txt"))
    hf.save_pretrained(tmp_path / "model", params, config, tokenizer=tokenizer)
    again = hf.load_config(tmp_path / "model")
    assert again.id2label == {0: "bad", 1: "good"}
    assert again.problem_type == "single_label_classification"
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    hf.save_pretrained(tmp_path / "copy", params, config, tokenizer=tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_unknown_format(tmp_path, tiny_bert_config):
    with pytest.raises(InputError, match=r"weights='pickle' cannot be written; expected one of"):
        hf.save_pretrained(tmp_path / "out", {}, tiny_bert_config, weights="pickle")


def test_incomplete_parameters_are_not_saved(tmp_path, tiny_bert_config):
    params = random_params(tiny_bert_config, "sequence-classification", 0)
    del params["pooler"]["bias"]
    params["extra"] = np.zeros(3)
    with pytest.raises(InputError, match=r"missing \['pooler/bias'\], unexpected \['extra'\]"):
        hf.save_pretrained(tmp_path / "out", params, tiny_bert_config)
    assert not (tmp_path / "out").exists()


def test_earlier_model_is_replaced_and_other_files_are_not(tmp_path, tiny_bert_config):
    target = tmp_path / "model"
    old, new = (random_params(tiny_bert_config, "base", seed) for seed in (0, 1))
    hf.save_pretrained(target, old, tiny_bert_config, weights="flax")
    hf.save_pretrained(target, new, tiny_bert_config)
    assert not (target / "flax_model.msgpack").exists()
    assert_same(params_of(target, "base")[0], new)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no saved model and is left as it is"):
        hf.save_pretrained(target, old, tiny_bert_config)
    assert_same(params_of(target, "base")[0], new)
    assert (target / "notes.txt").read_text() == "mine"
    assert siblings(target) == ["model"]
    with pytest.raises(InputError, match="is a file"):
        hf.save_pretrained(target / "notes.txt", old, tiny_bert_config)


def test_full_disk_leaves_the_earlier_model(tmp_path, tiny_bert_config, monkeypatch):
    target = tmp_path / "model"
    old, new = (random_params(tiny_bert_config, "base", seed) for seed in (0, 1))
    hf.save_pretrained(target, old, tiny_bert_config)

    def full(file, arrays):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(saving._WRITERS, "safetensors", full)
    for directory in (target, tmp_path / "other"):
        with pytest.raises(InputError, match=r"No space left on device.*Nothing was changed"):
            hf.save_pretrained(directory, new, tiny_bert_config)
    assert_same(params_of(target, "base")[0], old)
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
                hf.save_pretrained(tmp_path / "model", params, tiny_bert_config, weights=weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


# ---- converting


@pytest.mark.parametrize(
    ("name", "architecture", "tasks"),
    [
        ("torch_base", "BertModel", ["base"]),
        ("torch_pretraining", "BertForPreTraining", ["masked-lm", "base"]),
        (
            "torch_sequence_classification",
            "BertForSequenceClassification",
            ["sequence-classification"],
        ),
    ],
)
def test_convert_there_and_back(tmp_path, name, architecture, tasks):
    report = hf.convert(GOLDEN / name, tmp_path / "flax", "flax")
    original = load_file(GOLDEN / name / "model.safetensors")
    assert (report.architecture, report.tensors, report.tasks) == (
        architecture,
        len(original),
        tasks,
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
    report = hf.convert(source, tmp_path / "new", "safetensors")
    new = load_file(tmp_path / "new" / "model.safetensors")
    assert new.keys() == tensors.keys()
    assert all(x.dtype == np.float16 for x in new.values())
    assert report.dropped == ["bert.embeddings.position_ids", "cls.predictions.decoder.weight"]
    assert (tmp_path / "new" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()


def test_convert_infers_an_architecture_that_is_not_said(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "torch_sequence_classification", source)
    attributes = json.loads((source / "config.json").read_text())
    del attributes["architectures"]
    (source / "config.json").write_text(json.dumps(attributes))
    assert (
        hf.convert(source, tmp_path / "out", "flax").architecture == "BertForSequenceClassification"
    )
    assert "classifier/kernel" in formats.read_tensors(tmp_path / "out")


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

    def swap(family, tensors, abstract, where, init):
        params, report = original(family, tensors, abstract, where, init)
        if where.name.startswith("."):
            params = map_params(lambda path, x: x + 1 if path == "pooler/bias" else x, params)
        return params, report

    monkeypatch.setattr(converting.loading, "load", swap)
    with pytest.raises(InputError, match="base model's outputs differ by up to"):
        hf.convert(GOLDEN / "torch_base", tmp_path / "out", "flax")
    assert list(tmp_path.iterdir()) == []
