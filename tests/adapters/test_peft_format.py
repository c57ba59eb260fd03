"""peft's files: what is written, and what is refused. Outputs beside peft's are in tests/parity."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm import AutoModelForMaskedLM, AutoModelForSequenceClassification
from jaxllm.adapters import peft_format
from jaxllm.config.fields import LoraConfig
from jaxllm.errors import InputError
from jaxllm.models import module_parts
from jaxllm.pretrained import hf
from jaxllm.trees import flatten, unflatten

HEAD = "sequence-classification"
QUERY = "base_model.model.bert.encoder.layer.{}.attention.self.query"


def write(directory, config, head, shapes, base="the-base"):
    """An adapter of random numbers of these shapes, rank 2."""
    rng = np.random.default_rng(0)
    arrays = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    spec = LoraConfig(rank=2, alpha=3.0)
    peft_format.write(directory, unflatten(arrays), config, head, spec, base)
    return arrays


@pytest.fixture(scope="module")
def saved(tiny_bert_dir, tmp_path_factory):
    """(the directory of an adapter of the tiny BERT, its arrays in our layout)."""
    directory = tmp_path_factory.mktemp("adapters") / "adapter"
    shapes = {
        "blocks/attention/query/lora_a": (2, 32, 2),
        "blocks/attention/query/lora_b": (2, 2, 4, 8),
        "embeddings/token_type/lora_a": (2, 2),
        "embeddings/token_type/lora_b": (2, 32),
        "classifier/kernel": (32, 2),
        "classifier/bias": (2,),
    }
    return directory, write(directory, hf.load_config(tiny_bert_dir), HEAD, shapes)


@pytest.fixture
def adapter(saved, tmp_path):
    """A copy to spoil: its directory, and what changes a key of its config or its tensors."""
    directory = shutil.copytree(saved[0], tmp_path / "adapter")

    def spoil(config=None, tensors=None):
        if config is not None:
            file = directory / "adapter_config.json"
            about = json.loads(file.read_text()) | config
            file.write_text(json.dumps({k: x for k, x in about.items() if x != "absent"}))
        if tensors is not None:
            file = directory / "adapter_model.safetensors"
            save_file({k: x for k, x in (load_file(file) | tensors).items() if x is not None}, file)

    return directory, spoil


def test_what_is_written(saved):
    directory, arrays = saved
    about = json.loads((directory / "adapter_config.json").read_text())
    wanted = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "the-base",
        "r": 2,
        "lora_alpha": 3.0,
        "target_modules": ["query", "token_type_embeddings"],
        "modules_to_save": ["classifier"],
        "fan_in_fan_out": False,
    }
    assert wanted.items() <= about.items()
    tensors = load_file(directory / "adapter_model.safetensors")
    embedding = "base_model.model.bert.embeddings.token_type_embeddings.lora_embedding_"
    assert tensors.keys() == {
        *(f"{QUERY.format(i)}.lora_{x}.weight" for i in (0, 1) for x in "AB"),
        *(f"{embedding}{x}" for x in "AB"),  # no .weight
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }
    a, b = (tensors[f"{QUERY.format(1)}.lora_{x}.weight"] for x in "AB")
    np.testing.assert_array_equal(a, arrays["blocks/attention/query/lora_a"][1].T)
    np.testing.assert_array_equal(b, arrays["blocks/attention/query/lora_b"][1].reshape(2, 32).T)
    assert tensors[f"{embedding}A"].shape == (2, 2)
    assert tensors[f"{embedding}B"].shape == (32, 2)


def test_fused_layers(tiny_modernbert_config, tmp_path):
    """Query and value of one Wqkv are one adapter of twice the rank, scaled as they are."""
    shapes = {
        f"blocks/attention/{layer}/lora_{x}": (4, 32, 2) if x == "a" else (4, 2, 4, 8)
        for layer in ("query", "value")
        for x in "ab"
    }
    config = tiny_modernbert_config
    arrays = write(tmp_path / "adapter", config, "masked-lm", shapes)
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    name = "model.layers.3.attn.Wqkv"
    assert (about["rank_pattern"][name], about["alpha_pattern"][name]) == (4, 6.0)
    assert (about["target_modules"], about["modules_to_save"]) == (["Wqkv"], None)
    assert about["task_type"] is None
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    assert (a.shape, b.shape) == ((4, 32), (96, 4))
    product = (b @ a).T.reshape(32, 3, 4, 8)
    for i, layer in ((0, "query"), (2, "value")):
        one_a, one_b = (arrays[f"blocks/attention/{layer}/lora_{x}"][3] for x in "ab")
        np.testing.assert_allclose(
            product[:, i], (one_a @ one_b.reshape(2, 32)).reshape(32, 4, 8), rtol=1e-5, atol=1e-5
        )
    assert not product[:, 1].any()
    read = peft_format.read(
        tmp_path / "adapter", config, module_parts(config, "masked-lm")[1], "masked-lm"
    )
    assert read.layers == {f"blocks/attention/{n}": 4 for n in ("query", "key", "value")}


def test_a_model_takes_the_adapter(tiny_bert_dir, saved, caplog):
    directory, arrays = saved
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir)
    caplog.clear()
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, adapter=directory)
    assert "newly initialised" not in caplog.text  # the head is the adapter's
    before, after = flatten(base.params), flatten(model.params)
    added = np.einsum("ldr,lrnh->ldnh", *(arrays[f"blocks/attention/query/lora_{x}"] for x in "ab"))
    path = "blocks/attention/query/kernel"
    np.testing.assert_allclose(after[path] - before[path], 1.5 * added, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(after["classifier/bias"], arrays["classifier/bias"])
    changed = {p for p in after if not np.array_equal(before[p], after[p])}
    assert changed == {
        *(path, "embeddings/token_type/embedding"),
        *("classifier/kernel", "classifier/bias"),
    }


def of_other_names():
    return {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 32))}


BAD = {
    "no-lora": ({"peft_type": "IA3"}, None, "peft_type: found 'IA3', expected 'LORA'"),
    "no-type": ({"peft_type": "absent"}, None, "peft_type: found None"),
    "dora": ({"use_dora": True}, None, "use_dora: found True"),
    "biases": ({"bias": "all"}, None, "bias: found 'all'"),
    "other-start": ({"init_lora_weights": "pissa"}, None, "found init_lora_weights 'pissa'"),
    "no-rank": ({"r": "absent"}, None, "r: found None, expected a number above 0"),
    "no-alpha": ({"lora_alpha": "16"}, None, "lora_alpha: found '16'"),
    "another-base": (
        None,
        of_other_names(),
        "no layers for: .*q_proj.* but its base is 'the-base'",
    ),
    "more-layers": (
        *(None, {f"{QUERY.format(2)}.lora_{x}.weight": np.ones((2, 2)) for x in "AB"}),
        r"layer\.2\..*which this bert lacks.* its base is 'the-base'",
    ),
    "wider": (
        *(None, {f"{QUERY.format(1)}.lora_A.weight": np.ones((2, 64), np.float32)}),
        "found an adapter from 64 to 32 numbers for .*query.weight, which has 32 and 32",
    ),
    "half": (None, {f"{QUERY.format(1)}.lora_A.weight": None}, "found one of .*query's A and B"),
    "ranks": (
        *(None, {f"{QUERY.format(1)}.lora_A.weight": np.ones((3, 32), np.float32)}),
        r"found A \[3, 32\] and B \[32, 2\]",
    ),
    "nan": (
        *(None, {f"{QUERY.format(1)}.lora_A.weight": np.full((2, 32), np.nan, np.float32)}),
        "lora_A.weight is float32 and not of finite numbers everywhere",
    ),
    "whole-numbers": (
        *(None, {f"{QUERY.format(1)}.lora_A.weight": np.ones((2, 32), np.int32)}),
        "is int32",
    ),
    "more-labels": (
        *(None, {"base_model.model.classifier.weight": np.ones((5, 32), np.float32)}),
        r"classifier.weight \[5, 32\], this model has \[2, 32\].*set num_labels",
    ),
    "whole-blocks": (
        *(None, {"base_model.model.bert.encoder.layer.0.output.dense.weight": np.ones((2, 2))}),
        "a layer of a block that was trained whole",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_adapter_of_this_model(name, tiny_bert_dir, adapter):
    directory, spoil = adapter
    config, tensors, message = BAD[name]
    spoil(config, tensors)
    config = hf.load_config(tiny_bert_dir)
    with pytest.raises(InputError, match=message):
        peft_format.read(directory, config, module_parts(config, HEAD)[1], HEAD)


def test_files_that_are_missing_or_damaged(tiny_bert_dir, adapter):
    directory, _ = adapter
    config = hf.load_config(tiny_bert_dir)

    def read(where=directory):
        return peft_format.read(where, config, module_parts(config, HEAD)[1], HEAD)

    with pytest.raises(InputError, match=r"has no adapter_config.json; expected the directory"):
        read(tiny_bert_dir)
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"adapter_model.safetensors"):
        read()
    weights.unlink()
    with pytest.raises(InputError, match=r"no weights; looked for adapter_model.safetensors"):
        read()
    (directory / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"adapter_config.json"):
        read()


def test_an_adapter_is_no_model_but_names_its_base(saved):
    with pytest.raises(InputError, match="holds an adapter alone, of the base 'the-base'; give"):
        AutoModelForSequenceClassification.from_pretrained(saved[0])


def test_the_word_table_of_a_tied_decoder(tiny_bert_dir, tmp_path):
    config = hf.load_config(tiny_bert_dir)
    vocabulary = config.vocab_size
    shapes = {"embeddings/word/lora_a": (vocabulary, 2), "embeddings/word/lora_b": (2, 32)}
    write(tmp_path / "adapter", config, "masked-lm", shapes)
    with pytest.raises(InputError, match="embeddings/word, but this model's decoder"):
        AutoModelForMaskedLM.from_pretrained(tiny_bert_dir, adapter=tmp_path / "adapter")
