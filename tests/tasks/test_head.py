"""The rows of a head keep their labels: in training on, in evaluation, for tags; or it is new."""

import copy
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.models import Compute, module_parts
from jaxllm.nn.sharding import make_mesh, place
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import initial_params
from jaxllm.tasks import classification, tokens
from jaxllm.tasks.evaluate import evaluate
from jaxllm.tasks.head import fitted
from jaxllm.trees import flatten, map_params

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
NLI = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
ROWS = {"entailment": "good", "contradiction": "bad", "neutral": "so so"}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def checkpoint(tiny_bert_config, tokenizer, tmp_path_factory):
    """Saves a random model with a head for these labels, without compiling one; its directory."""

    def make(names, task="sequence-classification", config=tiny_bert_config, **attributes):
        config = copy.copy(config)
        config.vocab_size = len(tokenizer)
        config.num_labels = len(names)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        for name, value in attributes.items():
            setattr(config, name, value)
        rng = np.random.default_rng(len(names))
        _, abstract = module_parts(config, task)
        params = map_params(lambda _, x: 0.2 * rng.standard_normal(x.shape, np.float32), abstract)
        directory = tmp_path_factory.mktemp("checkpoint") / "model"
        hf.save_pretrained(directory, params, config, task, tokenizer=tokenizer)
        return str(directory), flatten(params)

    return make


@pytest.fixture(scope="module")
def nli(checkpoint):
    return checkpoint(NLI)


@pytest.fixture
def config_of(tmp_path):
    """A configuration that trains a model on rows of text and label; `dev` likewise."""

    def make(path, rows, dev=None, *, model=None, name="csv", **data):
        files = {}
        for part, content in {"train": rows, "dev": dev or rows}.items():
            file = tmp_path / f"{part}.{name}"
            if isinstance(content, dict):
                content = "text,label\n" + "".join(f"{t},{n}\n" for n, t in content.items())
            file.write_text(content)
            files[part] = [str(file)]
        return Config(
            model=ModelConfig(path=path, **(model or {})),
            data=DataConfig(**files, max_length=32, cache_dir=str(tmp_path / "cache"), **data),
            run=RunConfig(dir=str(tmp_path / "run")),
        )

    return make


def loaded(config, task):
    """The parameters that training begins with, by path."""
    _, abstract = task.model.parts(Compute())
    mesh = make_mesh(devices=jax.devices()[:1])
    return flatten(initial_params(task.model, config.model.path, 0, place(mesh, abstract)))


def names_of(task):
    return [task.model.config.id2label[i] for i in range(task.model.config.num_labels)]


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_labels_in_another_order_are_those_of_the_rows(case, nli, config_of, tokenizer, caplog):
    path, before = nli
    rows = {case(name): text for name, text in ROWS.items()}
    config = config_of(path, rows)
    caplog.set_level("INFO")
    task = classification.prepare(config, tokenizer)
    assert names_of(task) == NLI
    assert task.train.labels.tolist() == [2, 0, 1]
    assert task.evaluator.args[1].labels.tolist() == [2, 0, 1]
    assert task.evaluator.args[2] == NLI
    assert "its head goes on, for 3 labels (CONTRADICTION, NEUTRAL, ENT" in caplog.text
    for name, x in loaded(config, task).items():
        np.testing.assert_array_equal(x, before[name], err_msg=name)

    # Judged as it is, the ids of the data are those of the rows, too.
    saved = classification.prepare(config, tokenizer, saved=hf.load_config(path))
    assert saved.evaluator.args[1].labels.tolist() == [2, 0, 1]


def test_told_labels_and_ids_follow_the_head(nli, config_of, tokenizer):
    path, _ = nli
    rows = "text,label\ngood,1\nbad,0\nso so,2\n"
    told = ["contradiction", "entailment", "neutral"]
    config = config_of(path, rows, labels=told)
    for saved in (None, hf.load_config(path)):
        task = classification.prepare(config, tokenizer, saved=saved)
        assert names_of(task) == NLI
        assert task.evaluator.args[1].labels.tolist() == [2, 0, 1]


def test_several_labels_follow_the_head(checkpoint, config_of, tokenizer):
    path, before = checkpoint(["Insult", "toxic"], problem_type=MULTI)
    content = "text,toxic,insult\ngood,0,0\nbad,1,0\nso so,0,1\n"
    model = {"problem_type": MULTI}
    config = config_of(path, content, model=model, label=["toxic", "insult"])
    for saved in (None, hf.load_config(path)):
        task = classification.prepare(config, tokenizer, saved=saved)
        assert names_of(task) == ["Insult", "toxic"]
        assert task.evaluator.args[1].labels.tolist() == [[0, 0], [0, 1], [1, 0]]
    less = config_of(path, content, model=model, label=["toxic"])
    with pytest.raises(InputError, match=r"data\.label: found \['toxic'\], but the model at"):
        classification.prepare(less, tokenizer, saved=hf.load_config(path))
    assert loaded(config, task)["classifier/bias"].tolist() == before["classifier/bias"].tolist()


def test_class_weights_follow_the_head(nli, config_of, tokenizer, caplog):
    path, _ = nli
    caplog.set_level("INFO")

    def weights(wanted, **data):
        rows = [f"{text},{name}\n" for name, text in ROWS.items()] + ["fine,entailment\n"]
        config = config_of(path, "".join(["text,label\n", *rows]), **data)
        caplog.clear()
        config = replace(config, train=TrainConfig(class_weights=wanted))
        classification.prepare(config, tokenizer)
        return caplog.text.partition("class weights: ")[2].strip()

    told = ["contradiction", "entailment", "neutral"]
    assert weights([1.0, 2.0, 3.0], labels=told) == "CONTRADICTION 1, NEUTRAL 3, ENTAILMENT 2"
    assert weights([1.0, 2.0, 3.0]) == "CONTRADICTION 1, NEUTRAL 2, ENTAILMENT 3"
    assert weights("balanced") == "CONTRADICTION 1.333, NEUTRAL 1.333, ENTAILMENT 0.6667"


def test_some_of_the_labels_have_a_new_head_and_the_way_out_works(
    nli, config_of, tokenizer, caplog
):
    rows = {"entailment": "good", "neutral": "bad"}
    task = classification.prepare(config_of(nli[0], rows), tokenizer)
    assert names_of(task) == ["entailment", "neutral"]
    assert "To go on with this head, give all its labels as data.labels" in caplog.text
    task = classification.prepare(config_of(nli[0], rows, labels=NLI), tokenizer)
    assert task.train.labels.tolist() == [2, 1]
    assert not task.model.new


def test_choices_have_a_new_head_where_there_is_one_for_labels(nli, tiny_bert_dir, config_of):
    for path, new in ((nli[0], {"classifier/bias", "classifier/kernel"}), (tiny_bert_dir, set())):
        config = config_of(str(path), ROWS, model={"task": "multiple-choice"})
        assert fitted(config, [], "multiple-choice").new == new


OTHER = {  # what the data have
    "two labels": {"pos": "good", "neg": "bad"},
    "three others": {"pos": "good", "neg": "bad", "neutral": "so so"},
    "four": {**ROWS, "other": "bad film"},
}


@pytest.mark.parametrize("case", OTHER)
def test_other_labels_have_a_new_head(case, nli, config_of, tokenizer, caplog):
    path, before = nli
    config = config_of(path, OTHER[case])
    task = classification.prepare(config, tokenizer)
    assert names_of(task) == sorted(OTHER[case])
    assert "is for 3 labels (CONTRADICTION, NEUTRAL, ENTAILMENT), but" in caplog.text
    assert "(classifier/bias, classifier/kernel)" in caplog.text
    after = loaded(config, task)
    assert not after["classifier/bias"].any()
    assert after["classifier/kernel"].shape == (32, len(OTHER[case]))
    assert not np.isin(after["classifier/kernel"], before["classifier/kernel"]).any()
    for name in after.keys() - {"classifier/bias", "classifier/kernel"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    config = replace(config, model=replace(config.model, new_head="error"))
    with pytest.raises(InputError, match=r"is for 3 labels .*set model\.new_head: warn"):
        classification.prepare(config, tokenizer)


def test_a_number_in_place_of_labels_has_a_new_head(nli, checkpoint, config_of, tokenizer, caplog):
    rows = "text,label\ngood,1.5\nbad,0.5\n"
    config = config_of(nli[0], rows, model={"problem_type": "regression"})
    task = classification.prepare(config, tokenizer)
    assert "NEUTRAL, ENTAILMENT), but numbers are asked for" in caplog.text
    assert loaded(config, task)["classifier/kernel"].shape == (32, 1)
    caplog.clear()
    path, before = checkpoint(["LABEL_0"], problem_type="regression")
    config = config_of(path, rows, model={"problem_type": "regression"})
    task = classification.prepare(config, tokenizer)
    assert "head" not in caplog.text
    after = loaded(config, task)["classifier/kernel"]
    np.testing.assert_array_equal(after, before["classifier/kernel"])


def test_a_head_whose_labels_have_no_names(checkpoint, config_of, tokenizer, caplog):
    path, _ = checkpoint(["LABEL_0", "LABEL_1"])
    words, numbers = {"pos": "good", "neg": "bad"}, {"1": "good", "0": "bad"}

    def prepared(rows, **data):
        caplog.clear()
        config = config_of(path, rows, **data)
        task = classification.prepare(config, tokenizer)
        return names_of(task), task.train.labels.tolist(), bool(task.model.new)

    # Which of two words is LABEL_0 nobody knows; the user can tell, and numbers tell themselves.
    assert prepared(words) == (["neg", "pos"], [1, 0], True)
    assert "give the names of LABEL_0, LABEL_1 as data.labels, in this order" in caplog.text
    assert prepared(words, labels=["pos", "neg"]) == (["pos", "neg"], [0, 1], False)
    assert prepared(numbers) == (["0", "1"], [1, 0], False)
    assert prepared({"LABEL_1": "good", "LABEL_0": "bad"})[1:] == ([1, 0], False)
    assert prepared({"1": "good", "2": "bad"})[2]

    def judged(rows, **data):
        config = config_of(path, rows, **data)
        task = classification.prepare(config, tokenizer, saved=hf.load_config(path))
        return task.evaluator.args[1].labels.tolist(), task.evaluator.args[2]

    assert judged(numbers) == ([1, 0], ["LABEL_0", "LABEL_1"])
    assert judged(words, labels=["pos", "neg"]) == ([0, 1], ["pos", "neg"])
    told = r"unknown label 'pos'.*LABEL_0, LABEL_1, which are no names: give them in this order"
    with pytest.raises(InputError, match=told):
        judged(words)


def test_only_the_layer_with_the_labels_is_new(checkpoint, config_of, tokenizer):
    from transformers import RobertaConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    roberta = RobertaConfig(
        **sizes, intermediate_size=32, max_position_embeddings=66, type_vocab_size=2
    )
    path, before = checkpoint(NLI, config=roberta)
    config = config_of(path, OTHER["two labels"])
    task = classification.prepare(config, tokenizer)
    after = loaded(config, task)
    dense = "classification/dense/kernel"
    np.testing.assert_array_equal(after[dense], before[dense])
    assert after["classification/output/kernel"].shape == (32, 2)


CONLL = "Ann B-PER\nLee I-PER\n\nin O\nRio B-LOC\n"
TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_tags_follow_the_head(checkpoint, config_of, tokenizer, caplog):
    names = ["B-PER", "I-PER", "O", "I-Loc", "B-Loc"]
    path, before = checkpoint(names, "token-classification")
    config = config_of(path, CONLL, name="conll", model={"task": "token-classification"})
    task = tokens.prepare(config, tokenizer)
    assert names_of(task) == names
    assert [names[i] for i in task.train.word_labels] == ["B-PER", "I-PER", "O", "B-Loc"]
    first = task.train.labels[task.train.labels >= 0]
    assert first.tolist() == task.train.word_labels.tolist()
    assert task.train.labels[[0, -1]].tolist() == [-1, -1]  # [CLS] and [SEP]
    after = loaded(config, task)["classifier/kernel"]
    np.testing.assert_array_equal(after, before["classifier/kernel"])
    assert not [r for r in caplog.records if r.levelname == "WARNING" and "head" in r.message]


def test_tags_of_an_evaluation_may_be_in_any_case_or_ids(checkpoint, config_of, tokenizer):
    names = ["B-PER", "I-PER", "O", "I-Loc", "B-Loc"]
    path, _ = checkpoint(names, "token-classification")
    saved, model = hf.load_config(path), {"task": "token-classification"}
    ids = "Ann 3\nLee 4\n\nin 0\nRio 1\n"
    for content, labels in ((CONLL, None), (CONLL.replace("B-LOC", "B-loc"), TAGS), (ids, TAGS)):
        config = config_of(path, content, name="conll", model=model, labels=labels)
        task = tokens.prepare(config, tokenizer, saved=saved)
        found = task.evaluator(None, make_mesh(devices=jax.devices()[:1])).examples.word_labels
        assert [names[i] for i in found] == ["B-PER", "I-PER", "O", "B-Loc"]


def test_other_tags_have_a_new_head(nli, checkpoint, config_of, tokenizer, caplog):
    for path, told in (
        (checkpoint(["O", "B-PER", "I-PER"], "token-classification")[0], "3 labels (O, B-PER"),
        (nli[0], "3 labels (CONTRADICTION"),  # a head for texts: its layer has the same name
    ):
        caplog.clear()
        config = config_of(path, CONLL, name="conll", model={"task": "token-classification"})
        task = tokens.prepare(config, tokenizer)
        assert sorted(names_of(task)) == sorted(TAGS)
        assert told in caplog.text
        assert task.model.new == {"classifier/kernel", "classifier/bias"}


def test_a_model_without_a_head_is_not_warned_of(tiny_bert_dir, config_of, tokenizer, caplog):
    config = config_of(str(tiny_bert_dir), ROWS)
    task = classification.prepare(config, tokenizer)
    assert names_of(task) == sorted(ROWS)
    assert "head" not in caplog.text


def test_evaluation_takes_names_in_any_case(nli, config_of, tmp_path):
    config = config_of(nli[0], ROWS)
    evaluate(config)
    lines = (tmp_path / "run/evaluate/predictions.jsonl").read_text().splitlines()
    assert ['"label": "ENTAILMENT"' in line for line in lines] == [True, False, False]
