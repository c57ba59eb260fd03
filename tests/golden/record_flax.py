"""Records the flax_* goldens: checkpoints and outputs of the Flax classes of transformers 4.

Run it where they still are (transformers==4.57.6, jax 0.10.2, flax 0.12.8):

    python tests/golden/record_flax.py
"""

from pathlib import Path

import jax
import numpy as np
import transformers
from example import CONFIG, SMALL, batch
from transformers import BertConfig, FlaxBertForMaskedLM, FlaxBertForSequenceClassification

HERE = Path(__file__).parent
# directory -> (Flax class, attributes of its config beside those of all)
FAMILIES = {
    "flax_bert_pretraining": ("FlaxBertForPreTraining", {}),
    "flax_roberta_sequence_classification": (
        "FlaxRobertaForSequenceClassification",
        {"num_labels": 3},
    ),
    "flax_xlm_roberta_masked_lm": ("FlaxXLMRobertaForMaskedLM", {}),
    "flax_distilbert_masked_lm": ("FlaxDistilBertForMaskedLM", {}),
    "flax_distilbert_question_answering": ("FlaxDistilBertForQuestionAnswering", {}),
    "flax_electra_pretraining": ("FlaxElectraForPreTraining", {"embedding_size": 8}),
    "flax_gpt2_causal_lm": ("FlaxGPT2LMHeadModel", {}),
    "flax_llama_causal_lm": ("FlaxLlamaForCausalLM", {"num_key_value_heads": 1}),
    "flax_electra_multiple_choice": ("FlaxElectraForMultipleChoice", {"embedding_size": 8}),
}


def random_params(params: dict, seed: int) -> dict:
    """Every parameter away from its initial value, biases and scales too."""
    rng = np.random.default_rng(seed)

    def draw(x: jax.Array) -> np.ndarray:
        return (np.asarray(x) + 0.2 * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree.map(draw, params)


def record(name: str, cls: type, **options: object) -> None:
    model = cls(BertConfig(**CONFIG, **options))
    params = random_params(model.params, seed=len(name))
    directory = HERE / name
    model.save_pretrained(directory, params=params)
    inputs = batch()
    np.savez_compressed(
        directory / "expected.npz",
        logits=np.asarray(model(**inputs, params=params).logits),
        **inputs,
    )


def record_family(directory: Path, name: str, options: dict) -> None:
    cls = getattr(transformers, name)
    sizes, inputs = dict(SMALL), batch()
    if "DistilBert" in name:
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
        del inputs["token_type_ids"]
    if "GPT2" in name or "Llama" in name:
        del inputs["token_type_ids"]
    if "GPT2" in name:
        sizes["n_inner"] = sizes.pop("intermediate_size")
    if name.endswith("MultipleChoice"):
        inputs = {key: x[None] for key, x in inputs.items()}
    model = cls(cls.config_class(**sizes, **options))
    params = random_params(model.params, seed=len(name))
    model.save_pretrained(directory, params=params)
    outputs = {key: np.asarray(x) for key, x in model(**inputs, params=params).items()}
    np.savez_compressed(directory / "expected.npz", **outputs, **inputs)


def record_variants() -> None:
    """The classification golden again: index-sharded msgpack, and safetensors with Flax names."""
    source = HERE / "flax_sequence_classification"
    model = FlaxBertForSequenceClassification.from_pretrained(source)
    model.save_pretrained(HERE / "flax_sharded", max_shard_size="40KB")
    model.save_pretrained(HERE / "flax_safetensors", safe_serialization=True)


if __name__ == "__main__":
    record("flax_sequence_classification", FlaxBertForSequenceClassification, num_labels=3)
    record("flax_masked_lm", FlaxBertForMaskedLM)
    record_variants()
    for directory, (name, options) in FAMILIES.items():
        record_family(HERE / directory, name, options)
