"""GLUE: the table against files in the official layout, and several tasks in one command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from jaxllm import cli
from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxllm.config.reading import to_yaml
from jaxllm.data import glue as table
from jaxllm.data.corpus import load_examples
from jaxllm.data.glue import TASKS
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.runs import loop
from jaxllm.tasks import build, glue

# The header rows of gluebenchmark.com's files (train, dev, test) and a row in each of their
# formats; None where there is no header row. `{i}` is the row's number, `{y}` its label.
FILES = {
    "CoLA": (None, 'gj04\t{y}\t\tgood "movie {i}', "index\tsentence", "{i}\tgood movie"),
    "SST-2": ("sentence\tlabel", "good movie \t{y}", "index\tsentence", "{i}\tgood movie"),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '{y}\t7\t8\tthe "movie {i}\tthe plot',
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "{i}\t7\t8\tthe movie\tthe plot",
    ),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "{i}\tg\tf\t2012\t1\tnone\tnone\tthe movie {i}\ta movie\t{y}.25",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        "{i}\tg\tf\t2012\t1\tnone\tnone\tthe movie\ta movie",
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "{i}\t1\t2\twhat movie {i}\twho is it\t{y}",
        "id\tquestion1\tquestion2",
        "{i}\twhat\twho",
    ),
    "MNLI": (
        "index\tpromptID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
        "{i}\t1\tfiction\tthe movie {i}\ta plot\tneutral\t{y}",
        "index\tpromptID\tgenre\tsentence1\tsentence2",
        "{i}\t1\tfiction\tthe movie\ta plot",
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        '{i}\twhat movie {i}\tthe "movie\t{y}',
        "index\tquestion\tsentence",
        "{i}\twhat\tthe movie",
    ),
    "RTE": (
        "index\tsentence1\tsentence2\tlabel",
        "{i}\tthe movie {i}\tit was good\t{y}",
        "index\tsentence1\tsentence2",
        "{i}\tthe movie\tit was good",
    ),
    "WNLI": (
        "index\tsentence1\tsentence2\tlabel",
        "{i}\tthe movie {i}\tit was good\t{y}",
        "index\tsentence1\tsentence2",
        "{i}\tthe movie\tit was good",
    ),
}
COUNTS = {"train": 24, "dev": 9, "test": 5}


def write_task(root, name):
    task = TASKS[name]
    header, row, test_header, test_row = FILES[task.folder]
    folder = root / task.folder
    folder.mkdir()
    for part in ["train", *(p for _, p in task.dev), *(p for _, p in task.test)]:
        kind = part.partition("_")[0]
        head, line = (test_header, test_row) if kind == "test" else (header, row)
        classes = len(task.labels) or 6
        label = task.written if task.labels else str
        rows = [line.format(i=i, y=label(i % classes)) for i in range(COUNTS[kind])]
        text = "\n".join([*([head] if head else []), *rows]) + "\n"
        (folder / f"{part}.tsv").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def glue_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("glue")
    for name in TASKS:
        write_task(root, name)
    return root


@pytest.fixture(scope="module")
def config(glue_dir, tiny_bert_dir, tmp_path_factory):
    return Config(
        model=ModelConfig(path=str(tiny_bert_dir)),
        data=DataConfig(
            dataset=str(glue_dir), max_length=32, cache_dir=str(tmp_path_factory.mktemp("cache"))
        ),
        train=TrainConfig(batch_size=16, epochs=1.0, eval_batch_size=8),
        run=RunConfig(dir=str(tmp_path_factory.mktemp("run")), trackers=[], progress=False),
    )


@pytest.mark.parametrize("name", TASKS)
def test_the_official_files_of_a_task_are_read(name, config, tiny_tokenizer_dir):
    task = TASKS[name]
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    one = glue.task_config(name, config, task.dev[0][1])
    options = {"problem_type": task.problem_type, "labels": one.data.labels}
    for split in ("train", "dev"):
        examples, _ = load_examples(one.data, split, tokenizer, **options)
        classes = len(task.labels) or 6
        expected = np.arange(COUNTS[split]) % classes + (0 if task.labels else 0.25)
        np.testing.assert_array_equal(examples.labels, expected)
    test = table.test_rows(name, config.data, task.test[0][1])
    examples, _ = load_examples(test, "dev", tokenizer, problem_type=None, labels=None)
    np.testing.assert_array_equal(examples.rows, np.arange(1, COUNTS["test"] + 1))


HUB_LABELS = {"cola": "unacceptable acceptable", "mnli": "entailment neutral contradiction"}


@pytest.mark.parametrize("name", HUB_LABELS)
def test_the_hub_data_set_has_the_same_ids(name, config, tiny_tokenizer_dir, monkeypatch):
    names = HUB_LABELS[name].split()
    text = TASKS[name].hub
    columns = {c: ["a movie"] * 6 for c in (text.text, text.text_pair) if c}
    features = Features(
        {**dict.fromkeys(columns, Value("string")), "label": ClassLabel(names=names)}
    )
    rows = Dataset.from_dict(columns | {"label": [i % len(names) for i in range(6)]}, features)
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((*arguments, options["split"]))
        return rows

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = replace(config.data, dataset="nyu-mll/glue")
    one = table.train_and_dev(name, data, TASKS[name].dev[-1][1])
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    examples, learned = load_examples(
        one, "dev", tokenizer, problem_type="single_label_classification", labels=one.labels
    )
    assert learned == names
    np.testing.assert_array_equal(examples.labels, np.arange(6) % len(names))
    split = {"cola": "validation", "mnli": "validation_mismatched"}[name]
    assert asked == [("nyu-mll/glue", name, split)]


def test_stsbenchmark_files_serve_as_sts_b(config, tmp_path, tiny_tokenizer_dir):
    (tmp_path / "stsb").mkdir()
    line = 'main\tMSRvid\t2012\t1\t{}\tthe movie\ta "movie{}\n'
    for part in ("train", "dev", "test"):
        text = line.format("2.5", "") + line.format("4.000", "\tlicense\tsource")
        (tmp_path / "stsb" / f"sts-{part}.csv").write_text(text)
    data = replace(config.data, dataset=str(tmp_path))
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    one = table.train_and_dev("stsb", data, "dev")
    examples, _ = load_examples(one, "dev", tokenizer, problem_type="regression", labels=None)
    np.testing.assert_array_equal(examples.labels, [2.5, 4.0])
    test = table.test_rows("stsb", data, "test")
    examples, _ = load_examples(test, "dev", tokenizer, problem_type=None, labels=None)
    assert len(examples) == 2


def test_rows_of_qqp_that_are_cut_short_are_left_out(
    config, glue_dir, tmp_path, tiny_tokenizer_dir
):
    (tmp_path / "QQP").mkdir()
    for part in ("train", "dev"):
        text = (glue_dir / "QQP" / f"{part}.tsv").read_text() + "99\t1\t2\twhat movie\n"
        (tmp_path / "QQP" / f"{part}.tsv").write_text(text)
    one = table.train_and_dev("qqp", replace(config.data, dataset=str(tmp_path)), "dev")
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    examples, _ = load_examples(
        one, "dev", tokenizer, problem_type="single_label_classification", labels=one.labels
    )
    assert len(examples) == COUNTS["dev"]
    assert sum(examples.report.dropped.values()) == 1


@pytest.mark.parametrize(
    ("name", "logits", "answer"),
    [
        ("rte", [0.0, 1.0], "not_entailment"),
        ("cola", [0.0, 1.0], "1"),
        ("mnli", [0.0, 0.0, 1.0], "contradiction"),
        ("stsb", [5.5], "5.000"),
        ("stsb", [2.34567], "2.346"),
    ],
)
def test_answers_are_in_the_format_of_glue(name, logits, answer):
    assert TASKS[name].answer(np.array(logits)) == answer


@pytest.fixture(scope="module")
def finished(config):
    """The configuration and the result of a run of two tasks over two seeds."""
    config = replace(config, run=replace(config.run, seeds=[3, 4]))
    return config, glue.run(config, ["mnli", "stsb"])


def read_json(*parts):
    return json.loads(Path(*parts).read_text())


def test_summary_and_report_are_over_tasks_and_seeds(finished):
    config, result = finished
    seeds = [Path(config.run.dir) / "mnli" / f"seed_{seed}" for seed in (3, 4)]
    for key, found in {
        "accuracy": [read_json(seed, "summary.json")["eval/accuracy"] for seed in seeds],
        "mm_accuracy": [
            read_json(seed, "dev_mismatched/evaluate/metrics.json")["accuracy"] for seed in seeds
        ],
    }.items():
        assert result[f"mnli/eval/{key}"] == pytest.approx(np.mean(found))
        assert result[f"mnli/eval/{key}_std"] == pytest.approx(np.std(found, ddof=1))
    mnli = (result["mnli/eval/accuracy"] + result["mnli/eval/mm_accuracy"]) / 2
    stsb = (result["stsb/eval/pearson"] + result["stsb/eval/spearman"]) / 2
    assert result["eval/score"] == pytest.approx((mnli + stsb) / 2)
    assert read_json(config.run.dir, "summary.json").keys() == result.keys()
    report = Path(config.run.dir, "report.md").read_text()
    mean, std = (100 * result[f"mnli/eval/mm_accuracy{end}"] for end in ("", "_std"))
    assert f"| mnli | mm_accuracy | {mean:.2f} ± {std:.2f} | 2 |" in report
    assert "| stsb | spearman |" in report


def test_the_mismatched_part_is_judged_on_its_own_rows(finished):
    config, _ = finished
    seed = Path(config.run.dir) / "mnli" / "seed_3"
    expected = TASKS["mnli"].dev[1][1]
    assert f"{expected}.tsv" in glue.task_config("mnli", config, expected).data.dev[0]
    assert len((seed / "dev_mismatched/evaluate/predictions.jsonl").read_text().splitlines()) == 9


def test_predictions_of_the_test_part_are_in_the_format_of_glue(finished):
    config, _ = finished
    directory = Path(config.run.dir) / "submission"
    assert sorted(f.name for f in directory.iterdir()) == ["MNLI-m.tsv", "MNLI-mm.tsv", "STS-B.tsv"]
    for name in ("MNLI-m", "STS-B"):
        header, *rows = (directory / f"{name}.tsv").read_text().splitlines()
        assert header == "index\tprediction"
        assert [row.split("\t")[0] for row in rows] == ["0", "1", "2", "3", "4"]
        answers = [row.split("\t")[1] for row in rows]
        if name == "MNLI-m":
            assert set(answers) <= set(TASKS["mnli"].labels)
        else:
            assert all(0 <= float(answer) <= 5 for answer in answers)


def test_predictions_are_those_of_the_best_seed(finished, monkeypatch):
    config, _ = finished
    models = []
    monkeypatch.setattr(glue, "_test_logits", lambda model, config: models.append(model) or 1 / 0)
    runs = [Path(config.run.dir) / "stsb" / f"seed_{seed}" for seed in (3, 4)]
    best = max(runs, key=lambda run: read_json(run, "summary.json")["eval/pearson"])
    one = glue.task_config("stsb", config, "dev")
    with pytest.raises(ZeroDivisionError):
        glue._submit("stsb", one, config.data, Path(config.run.dir) / "submission")
    assert models == [str(best / "model")]


def test_the_same_command_again_trains_nothing(finished, monkeypatch):
    config, result = finished
    monkeypatch.setattr(build, "build", lambda config: 1 / 0)
    assert glue.run(config, ["stsb"])["stsb/eval/pearson"] == result["stsb/eval/pearson"]


def test_a_stop_is_told_with_the_way_to_go_on(config, monkeypatch):
    def stopped(config, build):
        raise loop.Interrupted(2, "stopped after step 1")

    monkeypatch.setattr(loop, "train", stopped)
    with pytest.raises(loop.Interrupted, match=r"step 1 .*the same jaxllm glue command"):
        glue.run(config, ["rte"])


@pytest.mark.parametrize("given", [["rte", "stsb"], ["[rte, stsb]"], ["[rte,", "stsb]"]])
def test_tasks_of_the_command_line(given, config, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(glue, "run", lambda config, tasks: asked.append((config, tasks)))
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    options = ["--config", str(tmp_path / "c.yaml"), "--train.batch_size", "4"]
    assert cli.main(["glue", "--tasks", *given, *options]) == 0
    assert cli.main(["glue", *options]) == 0
    four = replace(config, train=replace(config.train, batch_size=4))
    assert asked == [(four, ["rte", "stsb"]), (four, list(TASKS))]


def test_a_metric_that_some_task_lacks_is_told_before_training(config, monkeypatch):
    monkeypatch.setattr(glue, "_train", lambda *_: pytest.fail("it trains"))
    wrong = replace(config, train=replace(config.train, metric="accuracy"))
    with pytest.raises(InputError, match=r"train\.metric: found 'accuracy', expected .*pearson"):
        glue.run(wrong, ["rte", "stsb"])


@pytest.mark.parametrize(
    ("tasks", "data", "message"),
    [
        (["rte", "squad"], {}, "--tasks: found 'squad', expected some of cola, sst2"),
        (["rte", "rte"], {}, "each task once"),
        (["rte"], {"dataset": None}, "data.dataset: found null"),
        (["rte"], {"dataset": "{tmp}"}, "has no folder RTE"),
        (["rte"], {"dataset": "{tmp}/half"}, "there is no dev.tsv"),
    ],
)
def test_what_cannot_be_run_is_told_before_training(tasks, data, message, config, tmp_path):
    folder = tmp_path / "half" / "RTE"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n")
    data = {key: value and value.format(tmp=tmp_path) for key, value in data.items()}
    with pytest.raises(InputError, match=message):
        glue.run(replace(config, data=replace(config.data, **data)), tasks)
