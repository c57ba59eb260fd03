"""Conversations: what is asked for, what becomes of long ones, and rows that are none."""

import json

import numpy as np
import pytest

from jaxllm.config.fields import DataConfig
from jaxllm.data.conversations import load_conversations
from jaxllm.data.loader import eval_batches
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.train_tokenizer import train_tokenizer
from jaxllm.errors import InputError

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }};\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A token a character, with a chat template."""
    directory = tmp_path_factory.mktemp("characters")
    (directory / "text.txt").write_text("<>;\nabcdefghijklmnopqrstuvwxyzABCé? \n" * 9)
    files = [str(directory / "text.txt")]
    train_tokenizer(files, str(directory / "out"), kind="character", vocab_size=99)
    tokenizer = load_tokenizer(directory / "out")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def load(tmp_path, tokenizer):
    def run(rows, *, chat=True, length=200, tokenizer=tokenizer, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = {"text": "messages"} if chat else {"text": "prompt", "text_pair": "completion"}
        data = DataConfig(
            **{"train": [str(path)], "max_length": length, **columns, **settings},
            cache_dir=str(tmp_path / "cache"),
        )
        return load_conversations(data, "train", tokenizer, chat=chat), data

    return run


def chat(*contents, system=None):
    """Messages of the user and the assistant in turns."""
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": first + turns}


def asked(conversations, tokenizer):
    """Of each conversation (all of its text, what is asked for)."""
    found = []
    for a, b in zip(conversations.offsets[:-1], conversations.offsets[1:], strict=True):
        ids, on = conversations.tokens[a:b], conversations.asked[a:b]
        found.append((tokenizer.decode(ids), tokenizer.decode(ids[on])))
    return found


def test_replies_are_asked_for_and_nothing_else(load, tokenizer):
    conversations, _ = load([chat("hi", "Aé", "more?", "B", "left over", system="be")])
    whole = "<system>be;\n<user>hi;\n<assistant>Aé;\n<user>more?;\n<assistant>B;\n"
    assert asked(conversations, tokenizer) == [(whole, "Aé;\nB;\n")]
    assert conversations.text_bytes == len("Aé;\nB;\n".encode())
    assert conversations.text_tokens == len("Aé;\nB;\n")
    first = chat("hi", "A")
    first["messages"].insert(0, {"role": "assistant", "content": "C"})  # answers nothing
    (one,) = asked(load([first])[0], tokenizer)
    assert one == ("<assistant>C;\n<user>hi;\n<assistant>A;\n", "A;\n")


def test_prompts_and_their_replies(load, tokenizer):
    conversations, _ = load(
        [{"prompt": "ask ", "completion": "é"}, {"prompt": "b", "completion": "cc"}], chat=False
    )
    end = tokenizer.eos_token
    assert asked(conversations, tokenizer) == [
        (f"ask é{end}", f"é{end}"),
        (f"bcc{end}", f"cc{end}"),
    ]
    assert (conversations.text_tokens, conversations.text_bytes) == (3, 4)


def test_what_a_tokenizer_puts_in_front_of_a_text_is_in_front_of_a_prompt(load, tokenizer):
    import copy

    from tokenizers import processors

    other = copy.deepcopy(tokenizer)
    special = ("<|endoftext|>", 0)
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[special]
    )
    conversations, _ = load([{"prompt": "a", "completion": "b"}], chat=False, tokenizer=other)
    assert conversations.tokens.tolist() == [*other("ab")["input_ids"], 0]
    assert conversations.asked.tolist() == [False, False, True, True]


def test_batches_hold_several_conversations_with_labels_of_their_own(load, tokenizer):
    rows = [chat("a", "b"), chat("cc", "dd", "e", "f"), chat("g", "h")]
    conversations, data = load(rows, length=100)
    (batch,) = [arrays for arrays, _ in eval_batches(conversations, data=data, batch_rows=2)]
    ids, labels, weights, segments = (
        np.asarray(batch[name]) for name in ("input_ids", "labels", "label_weights", "segment_ids")
    )
    found = []
    assert segments.max() > 1
    for row in range(2):
        for segment in range(1, segments[row].max() + 1):
            on = segments[row] == segment
            np.testing.assert_array_equal(ids[row][on][1:], labels[row][on][:-1])
            found.append(tokenizer.decode(labels[row][on & (weights[row] > 0)]))
    assert sorted(found) == ["b;\n", "dd;\nf;\n", "h;\n"]
    np.testing.assert_array_equal(weights, batch["text_weights"])
    assert weights.sum() == conversations.text_tokens


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [
        ("right", "<system>be;\n<user>a;\n<assistant>b;\n"),
        ("left", "<system>be;\n<user>c;\n<assistant>d;\n"),
    ],
)
def test_long_conversations_lose_whole_turns(load, tokenizer, truncation, kept):
    row = chat("a", "b", "c", "d", system="be")
    full = len("<system>be;\n") + 2 * len("<user>a;\n<assistant>b;\n")
    for length, expected in ((full - 1, None), (full - 2, kept), (len(kept) - 1, kept)):
        ((text, _),) = asked(load([row], length=length, truncation=truncation)[0], tokenizer)
        assert text == (
            expected or "<system>be;\n<user>a;\n<assistant>b;\n<user>c;\n<assistant>d;\n"
        )
    with pytest.raises(InputError, match=r"row 1: no turn of it fits in data\.max_length=\d+ tok"):
        load([row], length=len(kept) - 2, truncation=truncation)
    none = r"there is no conversation, 1 dropped: no turn of it fits"
    with pytest.raises(InputError, match=none):
        load([row], length=len(kept) - 2, truncation="drop")
    for settings in ({"truncation": "drop"}, {"on_bad_row": "drop"}):
        short = chat("a", "b")
        settings = {"truncation": truncation, **settings}
        conversations, _ = load([row, short], length=len(kept) - 2, **settings)
        assert len(conversations) == 1
    with pytest.raises(InputError, match="row 1: no turn of it fits"):
        load([row], length=full - 2, truncation="error")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "no message behind the first is of the role assistant"),
        (chat("a"), "no message behind the first is of the role assistant, so there is no reply"),
        ({"messages": "hello"}, "found 'hello', expected a list of messages with role and content"),
        ({"messages": None}, "found nothing, expected a list of messages"),
        ({"messages": ["a", "b"]}, "message 1: found 'a', expected role and content"),
        ({"messages": [{"role": "user"}]}, "message 1, of user: missing content"),
        (chat("a", "  "), "message 2, of assistant: missing content"),
        (
            {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]},
            r"the chat template refuses the messages \(TemplateError: no tools\)",
        ),
    ],
)
def test_rows_that_are_no_conversation(load, tokenizer, row, message):
    with pytest.raises(InputError, match=rf"rows\.jsonl: row 2: {message}.*data\.on_bad_row: drop"):
        load([chat("a", "b"), row])
    conversations, _ = load([chat("a", "b"), row], on_bad_row="drop")
    assert conversations.rows.tolist() == [1]


@pytest.mark.parametrize("row", [{"prompt": "a", "completion": ""}, {"prompt": "a"}])
def test_a_prompt_without_a_reply(load, row):
    with pytest.raises(InputError, match="row 2: missing reply"):
        load([{"prompt": "a", "completion": "b"}, row], chat=False)


def test_templates_that_cannot_be_used(load, tokenizer, tiny_tokenizer_dir):
    import copy

    with pytest.raises(InputError, match=r"model\.tokenizer: .* has no chat template.*lm\.chat: f"):
        load([chat("a", "b")], tokenizer=load_tokenizer(tiny_tokenizer_dir))
    for template, message in (
        ("{% for m in messages %}", "the chat template refuses the messages .TemplateSyntaxError"),
        ("{{ messages | length }}", "writes message 2 another way where it is to be replied to"),
    ):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        with pytest.raises(InputError, match=message):
            load([chat("a", "b")], tokenizer=other)


def test_a_share_is_held_out_and_conversations_are_counted(load):
    rows = [chat(f"{x}", "b") for x in "abcdefgh"]
    conversations, _ = load(rows, dev_fraction=0.25)
    assert len(conversations) == 6
    assert len(load(rows, max_train_examples=3)[0]) == 3
