"""Old keys: they load as the new ones and say so; a run that was begun under them goes on."""

import dataclasses

import pytest
import yaml

from jaxllm.config import reading
from jaxllm.config.fields import Config, ContrastiveConfig, MaskingConfig, RunConfig
from jaxllm.config.renamed import RENAMED
from jaxllm.errors import InputError
from jaxllm.runs.directory import RunDir, changes

BASE = {
    "model": {"path": "w", "task": "sentence-embedding"},
    "data": {"train": ["a.csv"], "text_pair": "b"},
    "contrastive": {"score": "c"},
}
OLD = {  # key: (its text, the value of the new key)
    "run.tensorboard": ("false", []),
    "data.mask_unit": ("span", "span"),
    "data.mask_rate": ("2e-1", 0.2),
    "data.mask_slots": ("7", 7),
    "data.words": (".seg", ".seg"),
    "data.text_negative": ("d", "d"),
    "data.score": ("d", "d"),
    "data.positive_from": ("3", 3.0),
    "train.temperature": ("0.1", 0.1),
}


@pytest.fixture
def write(tmp_path):
    """Writes BASE with `keys`, {"data.mask_rate": "0.2", …}, and without the key `but`."""

    def write(keys, but=None):
        sections = {name: dict(fields) for name, fields in BASE.items()}
        for key, text in keys.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = reading.yaml_text.load(text)
        if but == "contrastive.score":
            del sections["contrastive"]
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(sections))
        return str(tmp_path / "c.yaml")

    return write


def value_of(config, key):
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


@pytest.fixture
def said(caplog):
    """The messages since the last call."""

    def said():
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return said


def test_every_old_key_is_tried():
    assert OLD.keys() == RENAMED.keys()


@pytest.mark.parametrize("old", OLD)
def test_an_old_key_in_a_file_is_the_new_one_and_says_so_once(old, write, said):
    text, wanted = OLD[old]
    new = RENAMED[old]
    file = write({old: text}, but=new)
    config = reading.from_yaml(file)
    assert value_of(config, new) == wanted
    said_first = said()
    for options in (["--config", file], ["--config", file, "--config", file, f"--{old}", text]):
        assert reading.load(options) == config
        [message] = said()
        assert [message] == said_first
        assert message.startswith(f"{file}, line ")
        assert f": {old} is now called {new}" in message
    saved = write({new: yaml.safe_dump(wanted)})
    assert reading.from_yaml(saved) == config
    assert said() == []


@pytest.mark.parametrize("old", OLD)
def test_an_old_key_on_the_command_line_is_the_new_one_and_says_so_once(old, write, said):
    text, wanted = OLD[old]
    new = RENAMED[old]
    file = write({})
    for options in ([f"--{old}", text], [f"--{old}={text}"], [f"--{old}={text}"] * 2):
        config = reading.load(["--config", file, *options])
        assert value_of(config, new) == wanted
        [message] = said()
        assert message.startswith(f"--{old} is now called {new}")


def test_each_of_several_old_keys_says_its_new_name(write, said):
    file = write({"data.mask_rate": "0.2", "data.words": ".seg"})
    assert reading.load(["--config", file, "--data.mask_slots", "7"]).masking == MaskingConfig(
        rate=0.2, slots=7, words=".seg"
    )
    assert len(said()) == 3


@pytest.mark.parametrize("name", ["JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_of_processes_that_start_together_the_first_says_it(name, write, said, monkeypatch):
    file = write({"data.mask_rate": "0.2"})
    for rank, count in (("0", 1), ("1", 0), ("12", 0)):
        monkeypatch.setenv(name, rank)
        assert reading.load(["--config", file]).masking.rate == 0.2
        assert len(said()) == count


def test_python_is_told_the_new_name(write):
    config = reading.from_yaml(write({}))
    with pytest.raises(InputError, match=r"data\.mask_rate; did you mean masking\.rate\?"):
        reading.changed(config, {"data": {"mask_rate": 0.2}})


def test_a_new_key_goes_over_an_old_one_of_the_file(write):
    file = write({"data.mask_rate": "0.2"})
    assert reading.load(["--config", file, "--masking.rate", "0.3"]).masking.rate == 0.3


@pytest.mark.parametrize("old", OLD)
def test_an_old_key_beside_its_new_one_is_refused(old, write):
    text, wanted = OLD[old]
    new = RENAMED[old]
    file = write({old: text, new: yaml.safe_dump(wanted)})
    with pytest.raises(InputError, match=rf"line \d+: {new} is there twice, once as {old}"):
        reading.load(["--config", file])
    for options in ([f"--{new}", text, f"--{old}={text}"], [f"--{old}", text, f"--{new}={text}"]):
        with pytest.raises(InputError, match=rf"--{new} is there twice, once as --{old}; remove"):
            reading.load(["--config", write({}), *options])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--data.mask_rate", "x"], ["--masking.rate: found x, expected a number"]),
        (["--data.mask_rate", "2"], ["--masking.rate: found 2.0, expected above 0 and below 1"]),
        (["--data.mask_rate"], ["--masking.rate", "one argument"]),
        (["--data.mask_rate+", "0.2"], ["unknown option --masking.rate+"]),
        (["--data.mask_rate.x", "0.2"], ["unknown option --masking.rate.x; masking.rate has no"]),
        (["--data.mask_rat", "0.2"], ["--data.mask_rat; did you mean --masking.rate?"]),
        (["--mask_rate", "0.2"], ["--mask_rate; did you mean --masking.rate?"]),
        (["--data.temperature", "1"], ["did you mean --contrastive.temperature?"]),
    ],
    ids=str,
)
def test_mistakes_under_old_names(options, parts, write):
    with pytest.raises(InputError) as error:
        reading.load(["--config", write({}), *options])
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_mistakes_under_old_names_in_a_file(write):
    with pytest.raises(InputError, match=r'line 4: data\.mask_rate: found "x", expected a number'):
        reading.from_yaml(write({"data.mask_rate": "x"}))
    with pytest.raises(InputError, match=r"data\.mask_rat; did you mean masking\.rate\?"):
        reading.from_yaml(write({"data.mask_rat": "0.2"}))


def as_it_was(config: Config) -> str:
    """The YAML that was saved before the keys moved."""
    sections = dataclasses.asdict(config)
    for old, new in RENAMED.items():
        (section, name), (to, key) = new.split("."), old.split(".")
        sections[to][key] = sections[section].pop(name)
    sections["run"]["tensorboard"] = True
    for name in ("masking", "contrastive"):
        assert sections.pop(name) == {}
    return reading.yaml_text.dump(sections)


def test_a_run_that_was_begun_under_the_old_keys_goes_on(tmp_path, said):
    config = Config(
        masking=MaskingConfig(rate=0.2),
        contrastive=ContrastiveConfig(temperature=0.1),
        run=RunConfig(dir=str(tmp_path)),
    )
    before = as_it_was(config)
    assert changes(before, reading.to_yaml(config)) == {}
    assert changes(before.replace("mask_rate: 0.2", "mask_rate: 0.1"), reading.to_yaml(config)) == {
        "masking.rate": (0.1, 0.2)
    }
    (tmp_path / "checkpoints" / "step_1").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(before)
    with RunDir(config) as directory:
        assert not directory.going_on
    assert (tmp_path / "config.yaml").read_text() == reading.to_yaml(config)
    assert said() == []
