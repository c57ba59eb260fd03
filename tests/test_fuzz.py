"""Odd command lines and configurations, from one seed: a message or an answer, no traceback."""

import random

import pytest

from jaxllm import cli
from jaxllm.config import reading
from jaxllm.data import train_tokenizer
from jaxllm.errors import InputError
from jaxllm.prediction import predict
from jaxllm.pretrained import hf
from jaxllm.runs import loop
from jaxllm.tasks import evaluate, glue

VALUES = (
    *("", "null", "true", "-1", "0", "1e999", "nan", "[]", "[a]", "[1,2", "{", "{a: 1}", "'", '"'),
    *("\\", "*x", "&a [*a]", "!!python/object:os.system x", "- a", "a: b: c", "2020-99-99", "\t"),
    *(
        "9" * 30,
        "9" * 5000,
        "[" * 200,
        "x" * 5000,
        "电影",
        "\udcff",
        "\0",
        "\n",
        "%",
        "@",
        "..",
        "½",
    ),
    *("[null]", "[1.5]", "['']", "[a, a]", "/dev/null", "~root", "package:", "http://x", "1e400"),
)
PIECES = (b"\0", b"\t", b"\n", b" ", b"#", b"&", b"*", b":", b"[", b"}", b"-", b"\xff", b"!", b"'")
BASE = b"model: {path: m}\ndata: {train: [a]}\n"


@pytest.fixture
def nothing_is_done(monkeypatch):
    counts = {"rows": 0, "errors": 0, "truncated": 0}
    for module, name in (
        *((loop, "train"), (evaluate, "evaluate"), (glue, "run"), (hf, "convert")),
        (train_tokenizer, "train_tokenizer"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr(predict, "predict", lambda *_, **__: counts)


def damaged(rng: random.Random) -> bytes:
    """BASE, with some bytes changed, or with a key that has an odd value."""
    kind = rng.randrange(3)
    if kind == 0:
        return BASE
    if kind == 1:
        text = bytearray(BASE)
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(text) + 1)
            text[at : at + rng.randrange(3)] = rng.choice(PIECES)
        return bytes(text)
    sections = {"model": {"path": "m"}, "data": {"train": "[a]"}}
    section, _, name = rng.choice(reading._KEYS).partition(".")
    sections.setdefault(section, {})[name] = rng.choice(VALUES).replace("\n", " ")
    lines = [
        f"{section}: {{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}\n"
        for section, keys in sections.items()
    ]
    return "".join(lines).encode("utf-8", "surrogateescape")


OTHERS = {
    "predict": ["--model", "m", "--input", "i", "--output", "o", "--batch_size", "3"],
    "convert": ["a", "b", "--weights", "flax"],
    "train-tokenizer": ["--files", "a", "b", "--output", "o", "--vocab_size", "9", "--cased"],
    "x": [],
}


def command_line(rng: random.Random, file: str) -> list[str]:
    """One that is right but for up to two words."""
    command = rng.choice([*["train", "evaluate", "glue"] * 3, *OTHERS])
    argv = list(OTHERS.get(command, ["--config", file]))
    if command in OTHERS:
        for _ in range(rng.randrange(2)):
            at = rng.randrange(len(argv) + 1)
            argv[at : at + rng.randrange(2)] = [rng.choice(VALUES)]
        return [command, *argv]
    for _ in range(rng.randrange(2)):
        key = rng.choice(reading._KEYS) + rng.choice(["", "", "", "", "+", ".x", "."])
        value = rng.choice(VALUES)
        argv += rng.choice([[f"--{key}={value}"], [f"--{key}", value], [f"--{key}"]])
    return [command, *argv]


def test_command_lines(nothing_is_done, tmp_path, capsys):
    rng = random.Random(13)
    statuses = []
    for _ in range(100):
        (tmp_path / "c.yaml").write_bytes(damaged(rng))
        argv = command_line(rng, str(tmp_path / "c.yaml"))
        try:
            status = cli.main(argv)
        except SystemExit as leaving:
            status = leaving.code
        printed = capsys.readouterr()
        assert status in (0, 2), argv
        assert (status == 2) == ("jaxllm: error: " in printed.err), argv
        said = [line for line in printed.err.splitlines() if " INFO " not in line]
        assert len(said) == (status == 2), argv
        assert len(printed.err) < 3000, argv
        statuses.append(status)
    assert min(statuses.count(0), statuses.count(2)) >= 5  # both kinds are met


@pytest.mark.parametrize("value", ["", "\n"])
def test_an_empty_value_of_a_list(value):
    with pytest.raises(InputError, match=r"data\.dev: found \s*, expected a list of text"):
        reading.load(["--data.dev", value])
