"""`jaxllm generate` and `jaxllm chat`, and `jaxllm predict` with a model that writes."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

import jaxllm
from jaxllm import cli
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.models import module_parts
from jaxllm.prediction.causal_lm import Continuer
from jaxllm.prediction.chat import template_ids
from jaxllm.prediction.generate import TextStream, kinds_that_write
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf
from jaxllm.tasks.registry import TASKS
from jaxllm.trees import map_params


@pytest.fixture(scope="module")
def directory(tiny_tokenizer_dir, tmp_path_factory):
    """A random model that writes words; [SEP] ends a text."""
    from transformers import LlamaConfig

    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rng = np.random.default_rng(1)
    abstract = module_parts(config, "causal-lm")[1]
    params = map_params(lambda path, x: 0.6 * rng.standard_normal(x.shape, np.float32), abstract)
    directory = tmp_path_factory.mktemp("writes") / "model"
    tokenizer.chat_template = TEMPLATE
    hf.save_pretrained(directory, params, config, "causal-lm", tokenizer=tokenizer)
    return directory


TEMPLATE = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} . {% endfor %}a"
LENGTH = ["--max_new_tokens", "10"]


@pytest.fixture
def run(directory, capsys):
    def run(*arguments, command="generate", model=directory):
        status = cli.main([command, "--model", str(model), *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def expected(directory, text, **options):
    """What the public class writes behind the tokens of a text, without the [SEP] behind them."""
    tokenizer = load_tokenizer(directory)
    ids = tokenizer(text)["input_ids"][:-1]
    model = jaxllm.AutoModelForCausalLM.from_pretrained(directory)
    (found,) = model.generate([ids], **options)
    whole = tokenizer.decode(found, skip_special_tokens=True)
    return whole.removeprefix(tokenizer.decode(ids, skip_special_tokens=True))


def test_a_prompt_is_continued_as_the_public_class_does(run, directory):
    status, out, _ = run("--prompt", "the movie", *LENGTH)
    assert status == 0
    assert out == f"the movie{expected(directory, 'the movie', max_new_tokens=10)}\n"
    assert len(out.split()) > 5
    streamed = run("--prompt", "the movie", *LENGTH, "--stream")
    assert streamed[:2] == (0, out)


def test_lines_are_continued_each_on_its_own(run, directory, tmp_path):
    """Whatever is in the batch beside it, drawn or not; a bad line is an error of its own."""
    rows = ["the movie", {"text": "a good film and a bad one"}, {"x": 1}, "", "it is"]
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    sampled = ["--temperature", "1.5", "--seed", "3"]

    def answers(lines, *options):
        file.write_text("".join(json.dumps(row) + "\n" for row in lines))
        assert run("--input", str(file), "--output", str(out), *LENGTH, *options)[0] == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    found = answers(rows)
    assert found[0] == {"text": expected(directory, "the movie", max_new_tokens=10)}
    assert found[4] == {"text": expected(directory, "it is", max_new_tokens=10)}
    assert [x.get("line") for x in found] == [None, None, 3, 4, None]
    drawn = answers(rows, *sampled)
    assert drawn[0] != found[0]
    assert answers(rows, *sampled, "--batch_size", "1") == drawn
    assert answers(["it is", *rows[1:]], *sampled)[1:] == drawn[1:]
    both = answers(rows, *sampled, "--num_return_sequences", "2")
    assert [x["texts"][0] for x in both if "texts" in x] == [
        x["text"] for x in drawn if "text" in x
    ]


def test_predict_continues_lines_as_the_model_s_files_say(run, directory, tmp_path):
    (tmp_path / "in.jsonl").write_text('"the movie"\n')
    file = str(tmp_path / "in.jsonl")
    status, out, _ = run("--input", file, "--output", "-", command="predict")
    assert (status, json.loads(out)) == (0, {"text": expected(directory, "the movie")})
    answers = jaxllm.load(directory)(["the movie", " ".join(["the"] * 60)])
    assert answers[0] == json.loads(out)
    assert answers[1] == {
        "error": "input_ids: the text has 61 tokens, the model has 40 positions; truncate the "
        "prompt",
        "line": 2,
    }


def test_a_stop_string_ends_a_text_where_no_token_does(run, directory):
    text = expected(directory, "the movie", max_new_tokens=10, eos_token_id=None)
    stop = text.split()[2]
    status, out, _ = run("--prompt", "the movie", *LENGTH, "--stop", stop, "--eos_token_id", "null")
    assert (status, out) == (0, f"the movie{text[: text.index(stop) + len(stop)]}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --prompt TEXT or --input FILE"),
        (["--prompt", "a", "--input", "b"], "expected --prompt TEXT or --input FILE"),
        (["--prompt", "a", "--output", "b"], "--output: goes with --input"),
        (["--input", "a", "--stream"], "--stream: goes with one --prompt"),
        (["--prompt", "a", "--prompt", "b", "--stream"], "--stream: expected one --prompt"),
        (["--prompt", " "], "--prompt ' ': the column 'text': the text is empty"),
        (["--prompt", "a", "--temperature", "0"], "temperature: found 0.0, expected a number"),
        (["--prompt", "a", "--top_p", "x"], "top_p: found 'x'"),
        (["--prompt", "a", "--max_new_tokens", "50"], "--prompt 'a': max_new_tokens: found 50"),
        (["--prompt", "a", "--max_token", "5"], "unrecognized arguments: --max_token"),
    ],
)
def test_what_cannot_be_is_named(run, arguments, message):
    status, out, err = run(*arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not out


def test_a_model_that_writes_nothing_is_refused():
    kind = kinds_that_write(TASKS, {})["masked-lm"]
    model = SimpleNamespace(directory="DIR", form=InputFormat("masked-lm"))
    with pytest.raises(InputError, match="DIR: a model of masked-lm, which writes nothing; exp"):
        kind.predictor(model, (1, 8))


def test_a_character_is_shown_when_all_of_its_bytes_are_there():
    shown = []

    class Spells:
        def spelled(self, prompt, new):
            return b"a\xc3\xa9\xc3"[: len(new)].decode(errors="replace")

    stream = TextStream(Spells(), shown.append)
    stream.put(np.array([[1, 2]]))
    for token in (5, 6, 7, 8):
        stream.put(np.array([token]))
    stream.end()
    assert "".join(shown) == "aé\ufffd"
    assert "a\ufffd" not in "".join(shown)


def test_the_task_is_answered_by_what_continues_texts():
    assert TASKS["causal-lm"].predictor.__self__ is Continuer


def test_a_conversation_goes_on_from_line_to_line(run, directory, monkeypatch):
    turns = ["the movie", "it is", "so good"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n".join(turns) + "\n"))
    status, out, _ = run("--max_new_tokens", "4", "--system", "a", command="chat")
    assert status == 0
    tokenizer = load_tokenizer(directory)
    model = jaxllm.AutoModelForCausalLM.from_pretrained(directory)
    messages = [{"role": "system", "content": "a"}]
    for turn, shown in zip(turns, out.splitlines(), strict=True):
        messages.append({"role": "user", "content": turn})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = model.generate([ids], max_new_tokens=4)[0]
        reply = tokenizer.decode(whole, skip_special_tokens=True)
        reply = reply.removeprefix(tokenizer.decode(ids, skip_special_tokens=True))
        assert shown == reply
        messages.append({"role": "assistant", "content": reply})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ raise_exception('no system') }}", "the chat template refuses the conversation: no s"),
        ("{% for %}", "the chat template refuses the conversation: "),
    ],
)
def test_a_conversation_that_cannot_be_written_is_named(template, message):
    tokenizer = SimpleNamespace(
        chat_template=template,
        apply_chat_template=lambda messages, **_: render_jinja_template(
            [messages], chat_template=template
        ),
    )
    continuer = SimpleNamespace(saved=SimpleNamespace(tokenizer=tokenizer, directory="DIR"))
    with pytest.raises(InputError, match=f"DIR: {message}"):
        template_ids(continuer, [{"role": "user", "content": "a"}])
