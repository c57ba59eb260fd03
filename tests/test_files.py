"""Reading the project's small files: whatever is wrong with one is told in one sentence."""

import re

import pytest

from jaxllm.errors import InputError
from jaxllm.files import read_json, reading, user_cache

DAMAGED = {
    "empty": b"",
    "cut": b'{"a": 1',
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "of another type": b"[1, 2]",
    "null": b"null",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_json_file_is_told(tmp_path, content):
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(path))}: .*; expected a summary; again$"
    ):
        read_json(path, dict, "a summary", "again")


def test_a_sound_file_is_read_and_a_missing_one_told(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match="cannot be read"):
        read_json(path, dict, "an object")
    path.write_text('{"é": [1]}', encoding="utf-8")
    assert read_json(path, dict, "an object") == {"é": [1]}


class Panic(BaseException):
    """As a Rust extension raises it."""


@pytest.mark.parametrize("error", [Exception("odd"), Panic("index out of bounds")])
def test_any_exception_of_a_parser_is_a_damaged_file(tmp_path, error):
    message = r"is damaged \(\w+: (odd|index out of bounds)\); expected a vocabulary"
    with pytest.raises(InputError, match=message), reading(tmp_path, "a vocabulary"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, InputError])
def test_what_is_no_damage_passes(tmp_path, error):
    with pytest.raises(error), reading(tmp_path, "a vocabulary"):
        raise error


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(InputError, match=r"no home directory .* set XDG_CACHE_HOME"):
        user_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert str(user_cache()) == "/c/jaxllm"
