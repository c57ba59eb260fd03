"""Multiple choice by the likelihood of the choices: prompts, shots, scores, mistakes."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from answering import read_lines

import jaxllm
from jaxllm import models
from jaxllm.config.fields import Config, DataConfig, MeshConfig, ModelConfig, RunConfig
from jaxllm.config.reading import changed
from jaxllm.data.corpus import ReadReport
from jaxllm.data.questions import Question, read_questions
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.train_tokenizer import train_tokenizer
from jaxllm.errors import InputError
from jaxllm.nn.sharding import make_mesh
from jaxllm.prediction.likelihood import Judged, Likelihood
from jaxllm.pretrained import hf
from jaxllm.tasks import build as task_build
from jaxllm.tasks import evaluate as task_evaluate
from jaxllm.tasks import multiple_choice
from jaxllm.tasks.choice_likelihood import LikelihoodEvaluator, prompts_of
from jaxllm.tasks.evaluate import evaluate
from jaxllm.trees import map_params

TRAIN = [
    {"text": "the cat sat", "choices": ["on it", "he"], "label": 0},
    {"text": "a hat", "choices": ["no", "the end", "cat"], "label": 1},
    {"text": "this", "choices": ["is a hat", "at"], "label": 1},
]
DEV = [
    {"text": "a cat", "choices": ["sat on the hat", "is", "it"], "label": 1},
    {"text": "the cat sat", "choices": ["on it", "he"], "label": 0},  # also in the training part
    {"text": "that", "choices": ["tea", "is the end"], "label": 0},
    {"text": "on a", "choices": ["hat", "thé"], "label": 1},
]
SHAPE = {
    "model_type": "gpt2",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "n_positions": 64,
}


@pytest.fixture(scope="module")
def gpt_dir(tmp_path_factory):
    """A random GPT-2 with a token a character."""
    directory = tmp_path_factory.mktemp("gpt")
    text = "\n\n".join(" ".join([row["text"], *row["choices"]]) for row in TRAIN + DEV)
    (directory / "text.txt").write_text(text)
    files = [str(directory / "text.txt")]
    train_tokenizer(files, str(directory / "tokenizer"), kind="character", vocab_size=99)
    tokenizer = load_tokenizer(str(directory / "tokenizer"))
    size = len(tokenizer)
    config = hf.load_config(None, **SHAPE, vocab_size=size, bos_token_id=0, eos_token_id=0)
    rng = np.random.default_rng(0)
    _, abstract = models.module_parts(config, "causal-lm")
    params = map_params(lambda path, x: 0.4 * rng.standard_normal(x.shape, np.float32), abstract)
    hf.save_pretrained(directory / "model", params, config, "causal-lm", tokenizer=tokenizer)
    return str(directory / "model")


@pytest.fixture
def config(tmp_path, gpt_dir, monkeypatch):
    for module in (task_build, task_evaluate):
        one = lambda *sizes: make_mesh(1, devices=jax.devices()[:1])  # noqa: E731
        monkeypatch.setattr(module, "make_mesh", one)
    for name, rows in (("train", TRAIN), ("dev", DEV)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Config(
        model=ModelConfig(task="multiple-choice", path=gpt_dir),
        data=DataConfig(
            train=[str(tmp_path / "train.jsonl")],
            dev=[str(tmp_path / "dev.jsonl")],
            choices=["choices"],
            max_length=64,
        ),
        mesh=MeshConfig(data=1),
        run=RunConfig(dir=str(tmp_path / "run"), progress=False, trackers=[]),
    )


def question(text, label, *choices):
    return Question(1, text, list(choices), label, hash((text, choices)))


def test_prompts_with_examples():
    answered = [question(f"q{i}", i % 2, "no", "yes") for i in range(6)]
    asked = [question("x", 0, "no", "yes"), answered[0], question("y", 0, "no", "yes")]
    assert prompts_of(asked, [], 0, seed=0) == ["x", "q0", "y"]
    prompts = prompts_of(asked, answered, 2, seed=0)
    examples = {f"{q.text} {q.choices[q.label]}" for q in answered}
    for prompt, own in zip(prompts, asked, strict=True):
        *shown, last = prompt.split("\n\n")
        assert last == own.text
        assert len(set(shown)) == 2
        assert set(shown) <= examples
    # Each question has examples of its own, the same ones in every run and whatever is behind it.
    assert len({prompt.rpartition("\n\n")[0] for prompt in prompts}) == 3
    assert prompts_of(asked[:1], answered, 2, seed=0) == prompts[:1]
    assert prompts_of(asked, answered, 2, seed=1) != prompts
    # A question is no example of its own answer, even where all are asked for.
    [prompt] = prompts_of(answered[:1], answered, 5, seed=0)
    assert sorted(prompt.split("\n\n")) == sorted([*examples - {"q0 no"}, "q0"])
    with pytest.raises(InputError, match=r"data\.shots: found 6, but data\.train has 5 questions"):
        prompts_of(answered[:1], answered, 6, seed=0)


def test_accuracy_by_the_likelihood_of_the_choices(config, tmp_path):
    """Beside prompts made by hand and scored one by one."""
    config = changed(config, {"data.shots": 1, "train.eval_batch_size": 3})
    values = evaluate(config)
    questions, _ = read_questions(config.data, "dev")
    answered, _ = read_questions(config.data, "train")
    prompts = prompts_of(questions, answered, 1, config.train.seed)
    judge = jaxllm.AutoModelForCausalLM.from_pretrained(config.model.path).judge()
    right = norm = loss = 0
    for row, prompt, found in zip(
        DEV, prompts, read_lines(tmp_path / "run/evaluate/predictions.jsonl"), strict=True
    ):
        assert prompt.endswith(f"\n\n{row['text']}")
        pairs = [(prompt, f" {choice}") for choice in row["choices"]]
        scores = np.array([x.log_probability for x in judge.loglikelihood(pairs)])
        np.testing.assert_allclose(found["log_probabilities"], scores, atol=1e-4)
        assert found["predicted"] == scores.argmax()
        per_byte = scores / [len(choice.encode()) for choice in row["choices"]]
        assert found["predicted_norm"] == per_byte.argmax()
        right += scores.argmax() == row["label"]
        norm += per_byte.argmax() == row["label"]
        loss -= np.log(
            np.exp(scores - scores.max())[row["label"]] / np.exp(scores - scores.max()).sum()
        )
    assert values == pytest.approx(
        {"accuracy": right / 4, "accuracy_norm": norm / 4, "loss": loss / 4}, abs=1e-4
    )
    assert right != norm  # or nothing would tell the two apart
    assert "4 rows read, 4 kept" in (tmp_path / "run/evaluate/report.txt").read_text()


def test_a_choice_is_as_long_as_its_bytes():
    asked = question("x", 0, "ééé", "abcd", "a")

    class Fixed:
        def judged(self, rows):
            return [Likelihood(score, False, 1) for score in (-3.3, -4.0, -2.0)]

    rows = [[Judged([0, 1], 1)] * 3]
    values = LikelihoodEvaluator(lambda params: Fixed(), [asked], ReadReport(), rows).metrics({})
    # In all -2 is best; for each byte -0.55, where it is -1.1 for each character.
    assert (values["accuracy"], values["accuracy_norm"]) == (0, 1)
    assert values["loss"] == pytest.approx(3.3 + np.log(np.exp([-3.3, -4, -2]).sum()))


def test_a_pair_is_where_the_choices_begin(config, tmp_path):
    rows = "a,b,c,d,label\nhe,it is,at,on,1\nshe,,at,on,0\n"
    (tmp_path / "q.csv").write_text(rows)
    data = replace(
        config.data, dev=[str(tmp_path / "q.csv")], text="a", text_pair="b", choices=["c", "d"]
    )
    questions, report = read_questions(data, "dev")
    assert [q[:4] for q in questions] == [
        (1, "he it is", ["at", "on"], 1),
        (2, "she", ["at", "on"], 0),
    ]
    assert (report.read, report.kept) == (2, 2)
    assert len(read_questions(replace(data, max_dev_examples=1), "dev")[0]) == 1


BAD = [
    ({"choices": ["on"]}, "1 choices, not 2"),
    ({"choices": "on it"}, "no list of choices"),
    ({"choices": ["on", ""]}, "missing choice"),
    ({"text": " "}, "missing text"),
    ({"label": 2}, "unknown label '2'"),
    ({"label": None}, "missing label"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_bad_rows(config, tmp_path, change, reason):
    (tmp_path / "dev.jsonl").write_text(
        "".join(f"{json.dumps(r)}\n" for r in [DEV[1], DEV[1] | change])
    )
    with pytest.raises(InputError) as error:
        read_questions(config.data, "dev")
    assert reason in str(error.value)
    assert "row 2" in str(error.value)
    questions, report = read_questions(replace(config.data, on_bad_row="drop"), "dev")
    assert len(questions) == 1
    assert sum(report.dropped.values()) == 1


def test_a_prompt_that_is_cut_is_told(config, caplog):
    tokenizer, saved = load_tokenizer(config.model.path), hf.load_config(config.model.path)
    config = changed(config, {"data.max_length": 24, "data.shots": 1})
    with caplog.at_level("WARNING", "jaxllm"):
        task = multiple_choice.prepare(config, tokenizer, saved=saved)
    parts = [read_questions(config.data, part)[0] for part in ("dev", "train")]
    prompts = prompts_of(*parts, 1, config.train.seed)
    longest = [
        len(prompt) + 1 + max(map(len, row["choices"]))
        for row, prompt in zip(DEV, prompts, strict=True)
    ]
    cut = sum(length > 24 + 1 for length in longest)  # the last token is judged, not read
    assert 0 < cut < 4
    assert f"{cut} of 4 prompts are longer than data.max_length=24" in caplog.text
    assert (task.train, task.metric, task.model.head) == (None, "accuracy", "causal-lm")
    caplog.clear()
    multiple_choice.prepare(changed(config, {"data.shots": 0}), tokenizer, saved=saved)
    assert "longer" not in caplog.text


def test_mistakes(config, tmp_path, tiny_bert_dir):
    with pytest.raises(InputError, match=r"model\.task: .* gpt2 has no such head .* likelihood"):
        task_build.build(config)
    bert = changed(config, {"model.path": str(tiny_bert_dir), "data.shots": 1})
    with pytest.raises(InputError, match=r"data\.shots: found 1, expected 0, as bert has a head"):
        task_build.build(bert)
    with pytest.raises(InputError, match=r"data\.shots: found -1, expected at least 0"):
        changed(config, {"data.shots": -1})
    short = changed(config, {"data.max_length": 8})
    with pytest.raises(InputError, match=r"data\.dev, row 1: the continuation ' sat on"):
        evaluate(short)
