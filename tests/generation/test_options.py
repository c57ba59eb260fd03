"""What `generate` is asked for: defaults of files, ranges, contradictions, lengths."""

import json
import re

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.generation.options import Options, options_of
from jaxllm.generation.prompts import Prompts, lengths, places
from jaxllm.models import module_parts
from jaxllm.trees import map_params

V = 50


def made(defaults=None, **given) -> Options:
    return options_of(given, defaults or {}, "DIR/generation_config.json", V)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"temperature": 0.0, "do_sample": True},
            "temperature: found 0.0, expected a number ab.*do_sample=False",
        ),
        ({"temperature": float("nan"), "do_sample": True}, "temperature: found nan"),
        ({"temperature": "1", "do_sample": True}, "temperature: found '1'"),
        ({"top_p": 0, "do_sample": True}, "top_p: found 0.0, expected above 0 and at most 1"),
        ({"top_p": 1.1, "do_sample": True}, "top_p: found 1.1"),
        ({"top_k": -1, "do_sample": True}, "top_k: found -1, expected at least 0"),
        ({"top_k": 2.5, "do_sample": True}, "top_k: found 2.5, expected a whole number"),
        ({"min_p": -0.1, "do_sample": True}, "min_p: found -0.1"),
        ({"typical_p": 0, "do_sample": True}, "typical_p: found 0"),
        ({"do_sample": 1}, "do_sample: found 1, expected True or False"),
        ({"max_new_tokens": 0}, "max_new_tokens: found 0, expected at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens: found True, expected a whole number"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: found 0.0, expected a number above 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: found -1"),
        ({"bad_words_ids": [[]]}, "bad_words_ids: found .*, expected a list of lists"),
        ({"bad_words_ids": [[50]]}, "bad_words_ids: found .*, expected token ids, 0 to 49"),
        ({"suppress_tokens": [50]}, "suppress_tokens: found .*, expected token ids, 0 to 49"),
        ({"eos_token_id": -1}, "eos_token_id: found -1, expected token ids, 0 to 49"),
        ({"pad_token_id": 50}, "pad_token_id: found 50, expected a token id, 0 to 49"),
        ({"stop_strings": [""]}, "stop_strings: found .*, expected texts of at least one"),
        ({"stop_strings": 3}, "stop_strings: found 3"),
        (
            {"num_beams": 51},
            "num_beams: found 51, expected at most the 50 tokens of the vocabulary",
        ),
        ({"num_beams": 0}, "num_beams: found 0, expected at least 1"),
        ({"early_stopping": "always", "num_beams": 2}, "early_stopping: found 'always'"),
        ({"length_penalty": "x", "num_beams": 2}, "length_penalty: found 'x', expected a number"),
        ({"max_new_token": 3}, "max_new_token=.*did you mean max_new_tokens"),
        ({"generation_config": object()}, "generation_config=: give its settings by name"),
        (
            {"num_beam_groups": 2},
            "num_beam_groups: found 2, which is not implemented; transformers",
        ),
        ({"guidance_scale": 1.5}, "guidance_scale: found 1.5, which is not implemented"),
        # What another value makes void.
        ({"temperature": 0.7}, "temperature: found 0.7 with do_sample=False"),
        ({"top_k": 5, "do_sample": False}, "top_k: found 5 with do_sample=False"),
        ({"length_penalty": 2.0}, "length_penalty: found 2.0 with num_beams=1"),
        ({"early_stopping": True}, "early_stopping: found True with num_beams=1"),
        ({"num_return_sequences": 2}, "num_return_sequences: found 2, expected 1"),
        (
            {"num_return_sequences": 3, "num_beams": 2},
            "num_return_sequences: found 3, .*num_beams=2",
        ),
        ({"output_scores": True}, "output_scores: found True, expected return_dict_in_generate"),
        (
            {"forced_eos_token_id": 4, "suppress_tokens": [4]},
            "forced_eos_token_id: found .4., which",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named(given, message):
    with pytest.raises(InputError, match=message):
        made(**given)


def test_a_file_s_value_that_cannot_be_is_named_with_the_file():
    where = re.escape("DIR/generation_config.json: ")
    with pytest.raises(InputError, match=where + "top_p: found 3"):
        made({"top_p": 3})
    with pytest.raises(InputError, match=where + "penalty_alpha: found 0.6, which is not"):
        made({"penalty_alpha": 0.6})


def test_what_a_caller_gives_stands_over_the_file_and_none_takes_it_away():
    file = {
        "eos_token_id": [3, 4],
        "pad_token_id": None,
        "temperature": 0.6,
        "top_p": 0.9,
        "max_length": 30,
        "transformers_version": "5.0.0",
        "use_cache": True,
        "chat_format": "chatml",
    }
    assert made(file) == Options(
        eos_token_id=(3, 4), temperature=0.6, top_p=0.9, max_length=30
    )  # which greedy decoding leaves aside
    asked = made(file, do_sample=True, top_p=None, eos_token_id=None, top_k=None, max_length=None)
    assert asked == Options(do_sample=True, temperature=0.6, top_k=0)
    numbers = made(eos_token_id=np.int64(3), max_new_tokens=np.int32(2), temperature=None)
    assert numbers == Options(eos_token_id=(3,), max_new_tokens=2)
    assert made(stop_strings="x").stop_strings == ("x",)


def test_tokens_that_a_file_names_and_the_model_lacks_never_occur():
    assert made({"eos_token_id": 50256, "bos_token_id": 50256, "pad_token_id": -1}) == Options()
    assert made({"eos_token_id": [4, 50256]}).eos_token_id == (4,)


def test_defaults_are_those_of_one_file(tmp_path):
    """generation_config.json alone where it exists; no default of a config class counts."""
    from transformers import LlamaConfig

    from jaxllm.pretrained.generation_defaults import generation_defaults, settings_to_keep

    config = LlamaConfig(vocab_size=V)
    assert config.eos_token_id == 2
    (tmp_path / "config.json").write_text('{"bos_token_id": 7, "max_length": 9, "vocab_size": 50}')
    settings, where = generation_defaults(tmp_path, config)
    assert options_of({}, settings, where, V) == Options(bos_token_id=7, max_length=9)
    assert where == str(tmp_path / "config.json")
    assert settings_to_keep(settings, where) == {"bos_token_id": 7, "max_length": 9}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    settings, where = generation_defaults(tmp_path, config)
    assert options_of({}, settings, where, V) == Options(eos_token_id=(5,))
    settings, where = generation_defaults(None, config)
    assert options_of({}, settings, where, V).eos_token_id == (2,)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"generation_config\.json: holds a JSON list"):
        generation_defaults(tmp_path, config)


def prompts(ids, mask=None, **given) -> Prompts:
    return Prompts.of(ids, mask, made(**given), V)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([], None, r"the shape \[0\], expected \[B, P\]"),
        ([[]], None, "an empty prompt"),
        ([[1], []], None, "row 1 has no token that is not padding"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], "row 1 has no token that is not padding"),
        ([[1, 2], [3, 4]], [[1, 1], [1, 0]], "row 1 ends in padding.*padding_side = 'left'"),
        ([[1, 2]], [[1]], r"attention_mask: found the shape \[1, 1\]"),
        ([1, 2], None, r"found the shape \[2\], expected \[B, P\].*in brackets"),
        ([[1, 50]], None, "found 50 in row 0, expected token ids, 0 to 49"),
        ([[1, -1]], None, "found -1 in row 0"),
        ([[1.0]], None, "numbers of type float64"),
        ([["a"]], None, "numbers of type <U1"),
        (None, None, "input_ids: "),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_named(ids, mask, message):
    with pytest.raises(InputError, match=message):
        prompts(ids, mask)


def test_prompts_of_different_lengths_are_padded_on_the_left():
    ragged = prompts([[1, 2, 3], [4]], eos_token_id=9)
    assert ragged.ids_BP.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert ragged.mask_BP.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert ragged.ignored.tolist() == [0, 2]
    wide = ragged.padded(5)
    assert wide.ids_BP[1].tolist() == [0, 0, 9, 9, 4]
    assert wide.mask_BP[1].tolist() == [0, 0, 0, 0, 1]


def test_the_mask_is_found_by_the_pad_id_unless_that_ends_texts():
    ids = [[0, 5, 0, 6]]
    assert prompts(ids, pad_token_id=0).mask_BP.tolist() == [[0, 1, 0, 1]]
    assert prompts(ids, pad_token_id=0, eos_token_id=[4, 0]).mask_BP.tolist() == [[1, 1, 1, 1]]
    assert prompts(ids).mask_BP.tolist() == [[1, 1, 1, 1]]
    assert prompts(ids, [[1, 1, 0, 1]], pad_token_id=0).mask_BP.tolist() == [[1, 1, 0, 1]]


def sizes(length, positions, padding=0, **given):
    ids = np.full((1, length), 3)
    mask = np.arange(length)[None] >= padding
    options = made(**given)
    return lengths(options, Prompts.of(ids, mask, options, V), positions)


def test_lengths_are_those_of_transformers():
    assert sizes(5, 64) == (0, 25)  # 20 more
    assert sizes(50, 64) == (0, 64)  # as far as there are positions
    assert sizes(5, None) == (0, 25)
    assert sizes(5, 64, max_length=9) == (0, 9)  # a length is the total
    assert sizes(5, 64, max_length=9, max_new_tokens=30) == (0, 35)
    assert sizes(5, 64, max_new_tokens=8, min_length=7) == (7, 13)
    assert sizes(5, 64, max_new_tokens=8, min_length=7, min_new_tokens=3) == (8, 13)
    assert sizes(5, 64, max_new_tokens=60) == (0, 65)  # the last token is not read
    assert sizes(9, 64, padding=4, max_new_tokens=60) == (0, 69)  # padding takes no position


@pytest.mark.parametrize(
    ("length", "given", "message"),
    [
        (65, {}, "input_ids: row 0 has 65 tokens, the model has 64 positions"),
        (5, {"max_length": 5}, "max_length: found 5, and the prompt has 5 places"),
        (
            5,
            {"max_new_tokens": 61},
            "max_new_tokens: found 61 .* 64 positions; expected at most 60",
        ),
        (5, {"max_length": 66}, "max_length: found 66 beside a prompt of 5 .* at most 60 new"),
        (5, {"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens: found 4, more than the 3"),
        (5, {"max_length": 9, "min_length": 10}, "min_length: found 10, more than the 9 tokens"),
    ],
)
def test_a_length_that_cannot_be_is_named(length, given, message):
    with pytest.raises(InputError, match=message):
        sizes(length, 64, **given)


def test_few_sizes_are_compiled():
    assert [places(n) for n in (1, 16, 17, 100)] == [16, 16, 32, 128]


def test_a_saved_model_keeps_how_it_generates(tmp_path):
    from transformers import LlamaConfig

    import jaxllm

    config = LlamaConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    abstract = module_parts(config, "causal-lm")[1]
    params = map_params(lambda path, x: np.ones(x.shape, np.float32), abstract)
    model, kept = jaxllm.AutoModelForCausalLM(config, params), "generation_config.json"
    model.save_pretrained(tmp_path / "a")
    assert json.loads((tmp_path / "a" / kept).read_text()) == {"bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "a" / kept).write_text('{"eos_token_id": [5, 6], "top_p": 0.5, "other": 1}')
    jaxllm.AutoModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    found = json.loads((tmp_path / "b" / kept).read_text())
    assert found == {"eos_token_id": [5, 6], "top_p": 0.5, "other": 1}
    model.save_pretrained(tmp_path / "b")  # over another
    assert json.loads((tmp_path / "b" / kept).read_text()) == {"bos_token_id": 1, "eos_token_id": 2}
