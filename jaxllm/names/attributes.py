"""The attributes of a config.json: which are implemented, which have one value, which say nothing.

An attribute that would change the numbers and is not implemented is refused by name.
"""

import difflib
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, field
from typing import Any

from jaxllm.errors import InputError
from jaxllm.names import values
from jaxllm.nn.layers import ACTIVATIONS

# Bookkeeping, names that no encoder of transformers reads, and what every model here can give.
BOOKKEEPING = {
    "architectures",
    "attn_implementation",
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "mask_token_id",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pad_token_id",
    "prefix",
    "problem_type",
    "return_dict",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
}

# How to generate text, which configs of transformers 2 and 3 spell out for every model, encoders
# too: see `generation.options`.
GENERATION = {
    "bad_words_ids",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "eos_token_ids",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "repetition_penalty",
    "return_dict_in_generate",
    "temperature",
    "top_k",
    "top_p",
}
# Attributes with one value that is implemented; those of encoders.
ENCODER_REQUIRED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
}

DECODER_REQUIRED: dict[str, Any] = {
    name: value
    for name, value in ENCODER_REQUIRED.items()
    if name not in ("is_decoder", "tie_word_embeddings")
}


def nearest(name: str, known: Collection[str]) -> str:
    """`; did you mean X?` for the known name that is most like `name`; empty where none is."""
    found = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {found[0]}?" if found else ""


@dataclass(frozen=True)
class Attributes:
    """What one model type's config may say.

    Attributes:
        implemented: what the modules read, activations apart.
        activations: what they read that names an activation.
        required: attributes with one value that is implemented, and the value.
        harmless: what transformers' model never read, beside BOOKKEEPING and GENERATION.
        problems: what is wrong with attributes that have a structure of their own.
    """

    implemented: frozenset[str]
    activations: frozenset[str]
    required: dict[str, Any] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    problems: Callable[[dict[str, Any]], list[str]] = lambda attributes: []

    def extended(
        self,
        *,
        implemented: Set[str] = frozenset(),
        activations: Set[str] = frozenset(),
        required: dict[str, Any] | None = None,
        harmless: Set[str] = frozenset(),
    ) -> "Attributes":
        """These and those."""
        return Attributes(
            self.implemented | implemented,
            self.activations | activations,
            {**self.required, **(required or {})},
            self.harmless | harmless,
            self.problems,
        )

    @property
    def effective(self) -> Set[str]:
        """What may be given to change the model."""
        return self.implemented | self.activations | self.required.keys()

    def check(self, attributes: dict[str, Any], where: str) -> None:
        """Raises InputError, naming every attribute, unless the model described is implemented."""
        known = self.effective | self.harmless | BOOKKEEPING | GENERATION
        wrong = values.problems({name: x for name, x in attributes.items() if name in known})
        if wrong:
            raise InputError(
                f"{where}: config attributes with impossible values: {'; '.join(wrong)}; mend "
                "them, or take config.json from another copy of the checkpoint"
            )
        problems = self.problems(attributes)
        for name, value in attributes.items():
            if name in self.required:
                if value is not None and value != self.required[name]:
                    problems.append(f"{name}={value!r} (implemented: {self.required[name]!r})")
            elif name in self.activations:
                if value not in ACTIVATIONS:
                    problems.append(f"{name}={value!r} (implemented: {', '.join(ACTIVATIONS)})")
            elif not (name in known or name.startswith("_") or value is None):
                hint = nearest(name, self.effective | BOOKKEEPING)
                problems.append(f"{name}={value!r} (unknown{hint})")
        if problems:
            raise InputError(
                f"{where}: config attributes that are not implemented: {'; '.join(problems)}; "
                "without them the numbers could be others. Use another checkpoint, or remove an "
                "attribute that you know to be without effect"
            )
