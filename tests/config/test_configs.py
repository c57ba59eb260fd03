"""Every file of configs/ trains, on a few rows in the public format that it names."""

import copy
import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from jaxllm import cli
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.train_tokenizer import train_tokenizer
from jaxllm.models import module_parts
from jaxllm.pretrained import hf
from jaxllm.trees import map_params

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TEXTS = [
    "the movie was good and we loved it",
    "a bad story with poor acting",
    "it works very well all the time",
    "they never liked the plot of this book",
]


@pytest.fixture(scope="session")
def model(tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory) -> str:
    """A tiny BERT with 512 positions, so that every config keeps its lengths."""
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    config = copy.copy(tiny_bert_config)
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 512
    rng = np.random.default_rng(0)
    _, abstract = module_parts(config, "base")
    params = map_params(lambda path, x: 0.2 * rng.standard_normal(x.shape, np.float32), abstract)
    directory = tmp_path_factory.mktemp("tiny") / "model"
    hf.save_pretrained(directory, params, config, "base", tokenizer=tokenizer)
    return str(directory)


def write(path: str, text: str) -> None:
    """A file under the working directory, .gz or not."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    Path(path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)


def rows(line: str) -> str:
    """`line` for 16 rows: text, another text, a label 0 or 1."""
    return "".join(line.format(a=TEXTS[i % 4], b=TEXTS[i % 3], y=i % 2) + "\n" for i in range(16))


def parquet(folder: str, features: dict, row) -> None:
    """A data set as the Hub has it, of rows that `row` gives for a number."""
    table = datasets.Dataset.from_list(
        [row(i) for i in range(16)], features=datasets.Features(features)
    )
    for part in ("train", "validation"):
        table.to_parquet(f"{folder}/{part}.parquet")


def squad(path: str, answers: bool = True) -> None:
    context = " ".join(TEXTS * 20)
    asked = []
    for i in range(8):
        start = context.index("loved", 60 * i)
        found = [{"text": "loved", "answer_start": start}] if i % 2 or answers else []
        asked.append({"id": f"{path} {i}", "question": "who loved it?", "answers": found})
    write(path, json.dumps({"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}))


def chnsenticorp() -> None:
    for name in ("train.tsv", "train.tsv.gz", "dev.tsv"):
        write(f"data/chnsenticorp/{name}", "label\ttext_a\n" + rows("{y}\t房间很好 {a}"))


def imdb() -> None:
    for part in ("train", "test"):
        for i in range(16):
            write(f"data/aclImdb/{part}/{('neg', 'pos')[i % 2]}/{i}_7.txt", TEXTS[i % 4])


def uci_sentiment() -> None:
    for site in ("amazon_cells", "imdb", "yelp"):
        write(f"data/uci_sentiment/{site}_labelled.txt", rows(site + " {a}\t{y}"))


def wnut17() -> None:
    for name in ("wnut17train", "emerging.dev"):
        write(f"data/wnut17/{name}.conll", "we\tO\nloved\tO\nKyoto\tB-location\n\t\n" * 16)


def squad2() -> None:
    squad("data/squad2/train-v2.0.json", answers=False)
    squad("data/squad2/dev-v2.0.json", answers=False)


def cmrc2018() -> None:
    squad("data/cmrc2018/cmrc2018_train.json")
    squad("data/cmrc2018/cmrc2018_dev.json")


def stsb() -> None:
    for part in ("train", "dev"):
        write(f"data/stsb/sts-{part}.csv", rows("g\tf\t2012\t1\t{y}.5\t{a}\t{b}\tx\ty"))


def contrastive() -> None:
    for part in ("train", "dev"):
        write(f"data/stsb/sts-{part}.csv", rows("g\tf\t2012\t1\t4.{y}\t{a}\t{b}\tx\ty"))


def wikitext2() -> None:
    for name in ("valid.txt.gz", "test.txt.gz", "train.txt", "valid.txt"):
        write(f"data/wikitext2/{name}", "\n\n".join("\n".join(TEXTS) for _ in range(4)))


def characters() -> None:
    """A tokenizer of characters, which has the end of a text."""
    write("characters.txt", "\n".join(TEXTS))
    train_tokenizer(["characters.txt"], "characters", kind="character", vocab_size=99)


def causal_wikitext2() -> None:
    wikitext2()
    characters()


def tinyshakespeare() -> None:
    for name in ("train", "val"):
        write(f"data/tinyshakespeare/{name}.txt", "\n".join(TEXTS * 4))
    characters()


def corpora() -> None:
    text = "\n\n".join("\n".join(TEXTS) for _ in range(20))
    for name in ("wikipedia/train-0", "books/train-0", "wikipedia/dev"):
        write(f"data/{name}.txt.gz", text)


def sst2() -> None:
    features = {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(2)}
    parquet("hub", features, lambda i: {"sentence": TEXTS[i % 4], "label": i % 2})


def go_emotions() -> None:
    labels = [datasets.ClassLabel(names=["joy", "anger", "neutral"])]
    features = {"text": datasets.Value("string"), "labels": labels}
    parquet("hub", features, lambda i: {"text": TEXTS[i % 4], "labels": [i % 2, 2][: 1 + i % 2]})


def swag() -> None:
    texts = ("sent1", "sent2", *(f"ending{i}" for i in range(4)))
    features = {name: datasets.Value("string") for name in texts} | {
        "label": datasets.ClassLabel(4)
    }
    parquet("hub", features, lambda i: dict.fromkeys(texts, TEXTS[i % 4]) | {"label": i % 4})


def glue() -> None:
    for part in ("train", "dev"):
        line = "1\t{a}\t{b}\t"
        lines = rows(line + "entailment") + rows(line + "not_entailment")
        write(f"hub/RTE/{part}.tsv", "index\tsentence1\tsentence2\tlabel\n" + lines)
    write("hub/RTE/test.tsv", "index\tsentence1\tsentence2\n" + rows("1\t{a}\t{b}"))


def nothing() -> None:
    """The quickstart's reviews are beside it."""


HUB = ["--data.dataset", "hub"]
TINY = (
    "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, "
    "intermediate_size: 64, max_position_embeddings: 512, vocab_size: %d}"
)
FEW = ["--train.batch_size", "8", "--train.eval_batch_size", "8"]  # of long rows
CHARACTERS = ["--model.tokenizer", "characters"]
# Of each config: its data, further options, and the metric that its summary has.
CASES = {
    "quickstart": (nothing, ["--data.max_train_examples", "32"], "accuracy"),
    "sst2": (sst2, [*HUB, "--data.dataset_config", "null"], "accuracy"),
    "sst2_lora": (sst2, [*HUB, "--data.dataset_config", "null"], "accuracy"),
    "go_emotions": (go_emotions, [*HUB, "--data.dataset_config", "null"], "f1"),
    "stsb": (stsb, [], "spearman"),
    "chnsenticorp": (chnsenticorp, [], "accuracy"),
    "wnut17": (wnut17, [], "f1"),
    "squad2": (squad2, [], "f1"),
    "cmrc2018": (cmrc2018, [], "f1"),
    "swag": (swag, [*HUB, "--data.dataset_config", "null"], "accuracy"),
    "contrastive": (contrastive, [], "spearman"),
    "mlm_wikitext2": (wikitext2, [], "masked_accuracy"),
    "gpt_wikitext2": (causal_wikitext2, CHARACTERS, "perplexity"),
    "gpt_tinyshakespeare": (
        tinyshakespeare,
        [*CHARACTERS, *FEW, "--optimizer.warmup", "1"],
        "bits_per_byte",
    ),
    "gpt_stdlib": (
        characters,
        [
            *(*CHARACTERS, *FEW, "--optimizer.warmup", "1"),
            *("--data.max_train_examples", "4", "--data.max_dev_examples", "1"),
        ],
        "accuracy",
    ),
    "bert_base": (corpora, ["--optimizer.warmup", "1"], "masked_accuracy"),
    "bert_large": (corpora, ["--optimizer.warmup", "1"], "masked_accuracy"),
    "glue": (glue, [*HUB, "--run.seeds", "[0]"], "accuracy"),
    "imdb": (imdb, FEW, "accuracy"),
    "listings/bert_adamw": (uci_sentiment, FEW, "f1"),
    "listings/chinese_sentiment": (chnsenticorp, [], "f1"),
    "listings/pretraining": (wikitext2, [], "next_sentence_accuracy"),
    "listings/finetuning": (uci_sentiment, [], "accuracy"),
    "listings/penalties": (nothing, ["--data.max_train_examples", "32"], "accuracy"),
    "listings/optimizers": (nothing, ["--data.max_train_examples", "32"], "accuracy"),
}
FROM_NOTHING = {"chnsenticorp", "mlm_wikitext2", "bert_base", "bert_large"}


def test_there_is_a_case_for_every_config():
    names = [path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.yaml")]
    assert sorted(CASES) == sorted(map(str, names))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_config_trains(name, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(CONFIGS)
    data, options, metric = CASES[name]
    data()
    options = [*options, "--train.steps", "2", "--run.trackers", "[]"]
    if name in FROM_NOTHING:
        config = TINY % len(load_tokenizer(model))
        options += ["--model.tokenizer", model, "--model.config", config]
    elif "--model.tokenizer" not in options:
        options += ["--model.path", model]
    command = ["glue", "--tasks", "rte"] if name == "glue" else ["train"]
    arguments = [*command, "--config", f"configs/{name}.yaml", *options]
    assert cli.main(arguments) == 0
    (run,) = tmp_path.glob("runs/*")
    summary = json.loads((run / "summary.json").read_text())
    key = f"rte/eval/{metric}" if name == "glue" else f"eval/{metric}"
    assert key in summary
    assert list(run.rglob("model.safetensors"))
