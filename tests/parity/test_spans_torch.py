"""The loss of question answering in packed rows beside PyTorch's on the windows one by one."""

import jax
import numpy as np
import torch
import transformers

from jaxllm import AutoModelForQuestionAnswering
from jaxllm.training.objectives import spans

LENGTHS, LABELS = [9, 5, 7], [(3, 6), (0, 0), (6, 6)]


def test_packed_loss_and_gradients(tiny_bert_config, tmp_path, rng):
    torch.manual_seed(0)
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**{**tiny_bert_config.to_dict(), **changes, "num_labels": 2})
    config.initializer_range = 0.3
    theirs = transformers.BertForQuestionAnswering(config).train()
    theirs.save_pretrained(tmp_path)
    ours = AutoModelForQuestionAnswering.from_pretrained(tmp_path)

    texts = [rng.integers(5, 99, length) for length in LENGTHS]
    total = torch.zeros(())
    for text, (start, end) in zip(texts, LABELS, strict=True):
        total = (
            total
            + theirs(
                input_ids=torch.tensor(text)[None],
                token_type_ids=(torch.arange(len(text)) > 2).long()[None],
                start_positions=torch.tensor([start]),
                end_positions=torch.tensor([end]),
            ).loss
        )
    total.backward()

    def row(parts):  # three places are left empty, and so is the fourth slot
        return np.concatenate([*parts, np.zeros(3, int)]).astype(np.int32)[None]

    batch = {
        "input_ids": row(texts),
        "segment_ids": row([np.full(n, i + 1) for i, n in enumerate(LENGTHS)]),
        "token_type_ids": row([np.arange(n) > 2 for n in LENGTHS]),
        "head_positions": np.array([[0, 9, 14, 0]], np.int32),
        "labels": np.array([[*LABELS, (0, 0)]], np.int32),
        "label_weights": np.array([[1, 1, 1, 0]], np.float32),
    }
    objective = spans(lambda params, **inputs: ours(**inputs, params=params))
    compute = jax.jit(jax.value_and_grad(lambda p: objective(p, batch, None), has_aux=True))
    (loss, (metrics, _)), gradient = compute(ours.params)
    np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
    assert metrics["loss"][1] == 3
    for got, parameter in (
        (gradient["qa_outputs"]["kernel"].T, theirs.qa_outputs.weight),
        (
            gradient["embeddings"]["word"]["embedding"],
            theirs.bert.embeddings.word_embeddings.weight,
        ),
    ):
        np.testing.assert_allclose(got, parameter.grad, rtol=1e-5, atol=1e-5)
