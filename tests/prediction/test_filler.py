"""`jaxllm predict` on masked language models: candidates of each mask, and the filled text."""

import json

import numpy as np
import pytest
from answering import predict
from encoders import random_params, tiny_config

from jaxllm import AutoModelForMaskedLM
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.train_tokenizer import KINDS, train_tokenizer
from jaxllm.errors import InputError
from jaxllm.metrics.classification import softmax
from jaxllm.prediction import masked_lm
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def save(tokenizer, tmp_path_factory):
    """Saves a random model with more logits than there are tokens; the others are the likeliest."""

    def save(task="masked-lm", form=None, family="bert", saved_tokenizer=tokenizer):
        config = tiny_config(family, task, vocab_size=len(tokenizer) + 3)
        directory = tmp_path_factory.mktemp("model") / "model"
        params = random_params(config, task)
        if "mlm" in params:
            params["mlm"]["bias"][-3:] = 50.0
        hf.save_pretrained(directory, params, config, task, tokenizer=saved_tokenizer)
        if form is not None:
            form.save(directory)
        return str(directory)

    return save


@pytest.fixture(scope="module")
def model(save):
    """Without jaxllm.json, as one from elsewhere."""
    return save()


def run(model, rows, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = predict(model, str(source), str(target), 8)
    return [json.loads(line) for line in target.read_text().splitlines()], counts


def test_candidates_are_those_of_a_direct_call(model, tokenizer, tmp_path):
    texts = [
        "the [MASK] was good",
        "[MASK] [MASK] was [MASK], and the story [MASK]!",
        "we loved it[MASK]",
        "the [MASK] of [MASK]",
    ]
    answers, counts = run(model, [{"text": text} for text in texts], tmp_path)
    assert counts == {"rows": 4, "errors": 0, "truncated": 0}
    direct = AutoModelForMaskedLM.from_pretrained(model)
    for text, answer in zip(texts, answers, strict=True):
        inputs = tokenizer(text, return_tensors="np")
        share_TV = softmax(np.asarray(direct(**inputs).logits[0]))
        share_MV = share_TV[inputs["input_ids"][0] == tokenizer.mask_token_id, : len(tokenizer)]
        assert len(answer["masks"]) == len(share_MV) == text.count("[MASK]")
        for candidates, share_V in zip(answer["masks"], share_MV, strict=True):
            best = np.argsort(-share_V)[:5].tolist()
            assert [c["token_id"] for c in candidates] == best
            assert [c["token"] for c in candidates] == tokenizer.convert_ids_to_tokens(best)
            np.testing.assert_allclose([c["score"] for c in candidates], share_V[best], rtol=1e-4)
            for c in candidates:
                assert set(c) == {"token", "token_id", "score"} | (
                    {"text"} if len(share_MV) == 1 else set()
                )
    for candidate in answers[0]["masks"][0]:
        token = candidate["token"]
        start = f"the{token[2:]}" if token.startswith("##") else f"the {token}"
        assert candidate["text"] == f"{start} was good"


def test_only_masks_go_through_the_head():
    masked_BT = np.zeros((3, 16), bool)
    masked_BT[0, [3, 9, 15]] = masked_BT[2, 5] = True
    positions_BP = masked_lm.mask_positions(masked_BT)
    assert positions_BP.shape == (3, 4)
    assert positions_BP.dtype == np.int32
    assert positions_BP[0, :3].tolist() == [3, 9, 15]
    assert positions_BP[2, 0] == 5
    assert masked_lm.mask_positions(masked_BT[1:]).shape == (2, 1)
    assert masked_lm.mask_positions(masked_BT[1:2]).shape == (1, 1)


def test_texts_without_a_mask_or_with_one_cut_off_are_errors(model, save, tmp_path):
    long = "[MASK] " + "good " * 30
    rows = ["good", "the [MASK]", f"{long} [MASK] [MASK]", long, {"other": 1}]
    answers, counts = run(model, rows, tmp_path)
    assert counts == {"rows": 5, "errors": 3, "truncated": 1}
    assert answers[0] == {"error": "the text has no [MASK]", "line": 1}
    assert answers[2] == {"error": "the text is too long: 2 of its 3 [MASK] cut", "line": 3}
    assert answers[3]["truncated"] is True
    assert answers[3]["masks"][0][0]["text"].endswith("good " * 30)
    assert "'text' is missing" in answers[4]["error"]


def test_models_that_were_pretrained_here_fill_masks(model, save, tokenizer, tmp_path):
    rows = ["a [MASK] film"]
    form = InputFormat(task="pretraining", max_length=16)
    assert "masks" in run(save("pretraining", form), rows, tmp_path)[0][0]
    assert "masks" in run(save("pretraining"), rows, tmp_path)[0][0]
    discriminator = save("pretraining", form, family="electra")
    with pytest.raises(InputError, match="the model has no masked-lm head"):
        run(discriminator, rows, tmp_path)


def test_a_tokenizer_without_mask_is_refused(save, tiny_tokenizer_dir, tmp_path):
    maskless = load_tokenizer(tiny_tokenizer_dir)
    maskless.mask_token = None
    with pytest.raises(InputError, match="the tokenizer has no mask token"):
        run(save(saved_tokenizer=maskless), ["a [MASK]"], tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("gpt2", "character")])
def test_a_token_is_filled_in_as_its_tokenizer_spells_it(kind, tmp_path):
    (tmp_path / "a.txt").write_text("It is the capital of a land. All capitals are (big).\n" * 30)
    train_tokenizer([str(tmp_path / "a.txt")], str(tmp_path / "t"), kind=kind, vocab_size=400)
    tokenizer = load_tokenizer(tmp_path / "t")
    mask = tokenizer.mask_token
    word, part = (
        tokenizer(text, add_special_tokens=False)["input_ids"][-1]
        for text in ("the capital", "the lands")  # the latter is no word of the corpus
    )
    assert masked_lm.fill(tokenizer, f"THE {mask} of", word) == "THE capital of"
    assert masked_lm.fill(tokenizer, f"({mask})", word) == "(capital)"
    assert masked_lm.fill(tokenizer, f"the land {mask} of", part) == "the lands of"
    assert masked_lm.fill(tokenizer, f"the land{mask} of", part) == "the lands of"
