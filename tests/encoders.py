"""What the tests of all families share: every (family, task), tiny configs, random inputs."""

import functools

import jax
import numpy as np

from jaxllm import auto, models
from jaxllm.models.encoder import Encoder
from jaxllm.trees import map_params

KIN = [name for name, family in models.FAMILIES.items() if family.stack is Encoder]  # of BERT
# Llama's modules: their other heads are its own.
OF_LLAMA = ("mistral", "qwen2", "qwen3")
PAIRS = [
    (name, task)
    for name, family in models.FAMILIES.items()
    for task in family.heads
    if name not in OF_LLAMA or task in ("base", "causal-lm")
]
# One pair for each class of head, and the bare model of each family: for what a head and an encoder
# do, whatever the other of the two is.
KINDS = [
    *{models.FAMILIES[family].heads[task]: (family, task) for family, task in PAIRS[::-1]}.values(),
    *((family, "base") for family in models.FAMILIES),
]
KINDS = [pair for pair in PAIRS if pair in KINDS]
LONGEST = 24  # tokens of a row
# An activation that no head has, so that a head which takes the wrong one shows.
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": LONGEST,
    "type_vocab_size": 2,
    "hidden_act": "silu",
    "initializer_range": 0.3,  # weights large enough that a wrong term shows
}
DISTILBERT_SIZES = {
    "vocab_size": 99,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": LONGEST,
    "activation": "silu",
    "initializer_range": 0.3,
}
MODERNBERT_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention", "sliding_attention"],
    "local_attention": 8,  # 4 tokens to either side
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": LONGEST,
    "hidden_activation": "silu",
    "classifier_activation": "relu",
    "initializer_range": 0.2,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id"), 0),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 1),
}
GPT2_SIZES = {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": LONGEST,
    "activation_function": "silu",
    "initializer_range": 0.3,
    **dict.fromkeys(("bos_token_id", "eos_token_id"), 1),
}
LLAMA_SIZES = {
    **{name: size for name, size in SIZES.items() if name != "type_vocab_size"},
    "num_attention_heads": 8,
    "num_key_value_heads": 4,  # as many as a mesh splits them into
    "initializer_range": 0.2,
}
DECODERS = {  # family -> what is its own
    "gpt2": GPT2_SIZES,
    "llama": {**LLAMA_SIZES, "head_dim": 8, "attention_bias": True, "mlp_bias": True},
    "mistral": {**LLAMA_SIZES, "sliding_window": 3, "head_dim": 6},
    "qwen2": {
        **LLAMA_SIZES,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": {**LLAMA_SIZES, "head_dim": 12, "tie_word_embeddings": True},
}
DECODERS = {
    name: {**sizes, "pad_token_id": 0, "use_cache": False} for name, sizes in DECODERS.items()
}
PAD = {"roberta": 1, "xlm-roberta": 1}  # id of padding, where it is not 0


def tiny_config(family, task="base", **changes):
    """A transformers config of two layers, with three labels where the task has labels."""
    from transformers import CONFIG_MAPPING

    other = {"distilbert": DISTILBERT_SIZES, "modernbert": MODERNBERT_SIZES, **DECODERS}
    sizes = other.get(family, SIZES)
    own = {
        "roberta": {"max_position_embeddings": LONGEST + 2},
        "xlm-roberta": {"max_position_embeddings": LONGEST + 2},
        "electra": {"embedding_size": 16},
    }.get(family, {})
    if task == "causal-lm" and family not in DECODERS:
        own = {**own, "is_decoder": True, "use_cache": False}
    labels = 2 if task == "question-answering" else 3
    return CONFIG_MAPPING[family](**{**sizes, **own, "num_labels": labels, **changes})


def random_inputs(family, task, length, rng):
    """Two rows, or two times three choices, of which the last has a third of padding."""
    shape = (2, 3, length) if task == "multiple-choice" else (2, length)
    mask = np.ones(shape, np.int32)
    mask[-1, ..., length - length // 3 :] = 0
    ids = np.where(mask > 0, rng.integers(2, 99, shape), PAD.get(family, 0))
    inputs = {"input_ids": ids.astype(np.int32), "attention_mask": mask}
    if family not in ("distilbert", "modernbert", *DECODERS):
        types = (np.arange(length) >= length // 2).astype(np.int32)
        inputs["token_type_ids"] = np.broadcast_to(types, shape).copy()
    return inputs


def outputs_of(out):
    """{name: array} of what a head gives, hidden states, attentions and caches left out."""
    names = (name for name in vars(out) if name not in ("hidden_states", "attentions", "cache"))
    return {name: getattr(out, name) for name in names if getattr(out, name) is not None}


def cotangents(outputs, mask, seed=0):
    """Random weights of a loss that is linear in the outputs; none on padding."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, x in outputs.items():
        weight = rng.standard_normal(x.shape).astype(np.float32) / np.prod(x.shape)
        if x.shape[:2] == mask.shape:
            weight *= mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
        weights[name] = weight
    return weights


def weighted(out, weights):
    return sum((x * weights[name]).sum() for name, x in outputs_of(out).items())


def random_params(config, task, seed=0):
    """Weights, biases and scales all drawn, on the host: compiling the initialisers is slow."""
    rng, std = np.random.default_rng(seed), config.initializer_range
    return map_params(
        lambda path, x: rng.normal(path.endswith("scale"), std, x.shape).astype(np.float32),
        models.module_parts(config, task)[1],
    )


CLASSES = {cls.task: cls for cls in auto.PretrainedModel.__subclasses__()}  # public ones


@functools.cache
def tiny_model(family="bert", task="sequence-classification", compute=None):
    """A public class's model; tests share it, and do not change it."""
    config = tiny_config(family, task)
    return CLASSES[task](config, random_params(config, task), compute)


def close(out, expected, **tolerance):
    """Asserts that two trees of arrays are equal but for rounding."""
    for a, b in zip(*(jax.tree.leaves(x) for x in (out, expected)), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-5, **tolerance})
