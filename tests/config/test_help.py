"""The help of commands that take a configuration: a page of sections, and the fields of each."""

import dataclasses
import re
import subprocess
import sys

import pytest

from jaxllm import cli
from jaxllm.config.fields import Config, MaskingConfig

COMMANDS = ["train", "evaluate", "glue"]
SECTIONS = {section.name: section.type for section in dataclasses.fields(Config)}
WORKS_WITHOUT = """
import sys
sys.modules |= dict.fromkeys(["jax", "numpy", "jsonargparse", "transformers", "datasets"])
from jaxllm import cli
cli.main(["train", "--help"])
"""


@pytest.fixture
def help_of(capsys, monkeypatch):
    def help_of(*argv):
        """What a command prints and ends with 0, in a terminal of 80 columns."""
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as exit:
            cli.main(list(argv))
        assert exit.value.code == 0
        return capsys.readouterr().out

    return help_of


def fields_in(text):
    return re.findall(r"^  --(\w+\.\w+)", text, re.MULTILINE)


def fields_of(*sections):
    return [f"{name}.{f.name}" for name in sections for f in dataclasses.fields(SECTIONS[name])]


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_page_of_sections(command, option, help_of):
    text = help_of(command, option)
    lines = text.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: jaxllm {command} --config FILE")
    assert f"`jaxllm {command} --help data` shows the fields of data" in text
    assert fields_in(text) == []
    for name, section in SECTIONS.items():
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.split(maxsplit=1)[1] == section.__doc__.splitlines()[0]
    assert ("--tasks TASK" in text) == (command == "glue")


@pytest.mark.parametrize("section", SECTIONS)
def test_help_of_a_section_is_its_fields(section, help_of):
    text = help_of("train", "--help", section)
    assert fields_in(text) == fields_of(section)
    assert "--config FILE" in text.splitlines()[0]
    said = " ".join(text.split())
    for field in dataclasses.fields(SECTIONS[section]):
        described = SECTIONS[section].__doc__.partition(f" {field.name}: ")[2].split()[:3]
        assert described, f"{section}.{field.name} has no description"
        assert " ".join(described) in said


def test_help_of_a_field_has_its_type_default_and_meaning(help_of):
    said = " ".join(help_of("train", "--help", "masking").split())
    assert (
        "--masking.rate RATE share of the tokens that the model is asked for (type: float, def"
        in (said)
    )
    assert f"default: {MaskingConfig().rate})" in said
    assert "--masking.unit {token,word,span}" in said


@pytest.mark.parametrize(
    ("options", "sections"),
    [
        (["--help", "masking", "qa"], ["masking", "qa"]),
        (["--help", "qa", "masking", "qa"], ["qa", "masking"]),
        (["--help=optimizer"], ["optimizer"]),
        (["-h", "run", "--data.train", "x"], ["run"]),
        (["--data.train", "x", "--help", "run"], ["run"]),
        (["--help", "all"], SECTIONS),
        (["--help", "qa", "all"], SECTIONS),
    ],
    ids=str,
)
def test_help_of_some_sections(options, sections, help_of):
    assert fields_in(help_of("train", *options)) == fields_of(*sections)


@pytest.mark.parametrize("command", ["evaluate", "glue"])
def test_other_commands_show_a_section(command, help_of):
    text = help_of(command, "--help", "mesh")
    assert text.startswith(f"usage: jaxllm {command} --config FILE")
    assert fields_in(text) == fields_of("mesh")


def test_help_beside_a_file_shows_its_values(help_of, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("masking: {rate: 0.3}\nqa: {n_best: 7}\n")
    text = help_of("train", "--config", str(tmp_path / "c.yaml"), "--help", "masking")
    assert "default: 0.3)" in text
    assert fields_in(text) == fields_of("masking")
    assert cli.main(["train", "--help", "data", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "cannot read the configuration" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("names", [["nix"], ["data", "nix"], ["all", "nix"]], ids=str)
def test_help_of_an_unknown_section_names_the_sections(command, names, capsys):
    assert cli.main([command, "--help", *names]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"--help: found nix, expected a section: {', '.join(SECTIONS)}; or all" in captured.err


def test_the_page_of_sections_needs_no_library():
    result = subprocess.run(
        [sys.executable, "-c", WORKS_WITHOUT], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: jaxllm train")
