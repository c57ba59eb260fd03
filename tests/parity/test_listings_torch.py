"""The configs of docs/listings beside the PyTorch listings that they stand for: equal losses.

Both start from one small BERT that PyTorch has saved and see the same rows in the same batches;
each makes tokens of them by itself. Dropout is off, and rates are higher than those of the
listings, so that six steps move the loss.
"""

from functools import partial
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip("transformers")

from jaxllm.config import reading  # noqa: E402
from jaxllm.data.loader import LoaderState  # noqa: E402
from jaxllm.nn.sharding import make_mesh  # noqa: E402
from jaxllm.tasks import build as task_build  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LENGTH, BATCH, STEPS, ROWS = 16, 4, 6, 20
LR = 5e-4
RATE = ["--optimizer.learning_rate", LR]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789"]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(task_build, "make_mesh", lambda *_: mesh)


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Saves a tiny random model of a class, with its tokenizer; gives the directory."""
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.5,  # for the head that a listing leaves without dropout
    )

    def run(cls):
        torch.manual_seed(0)
        model = cls(config)
        with torch.no_grad():  # biases and scales away from zero and one, too
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        directory = tmp_path_factory.mktemp("model")
        model.save_pretrained(directory)
        (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        return directory

    return run


@pytest.fixture(scope="module")
def classifier(save):
    return save(transformers.BertForSequenceClassification)


@pytest.fixture(scope="module")
def rows():
    """(text, label) of each row; some texts are longer than a row of tokens."""
    rng = np.random.default_rng(0)
    words = [rng.choice(list("abcdefghij"), n) for n in rng.integers(3, 2 * LENGTH, ROWS)]
    return [(" ".join(text), number % 2) for number, text in enumerate(words)]


def ours(name, *options):
    """(the config as it stands in its file, batches, losses) of `STEPS` steps."""
    file = ["--config", str(CONFIGS / f"{name}.yaml")]
    plain = reading.load(file)
    short = ["--data.max_length", f"{LENGTH}", "--data.buckets", f"[{LENGTH}]"]
    small = ["--train.batch_size", f"{BATCH}", "--train.steps", f"{STEPS}"]
    job = task_build.build(reading.load([*file, *short, *small, *map(str, options)]))
    batches = list(islice(job.loader.batches(LoaderState()), STEPS))
    losses, state = [], job.state
    for batch in batches:
        state, metrics = job.train_step(state, batch.arrays)
        losses.append(metrics["loss"][0] / metrics["loss"][1])
    return plain, batches, np.array(losses)


def tokenized(directory, rows, batches):
    """The batches as a listing tokenizes them: (inputs, labels) of each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for batch in batches:
        texts, labels = zip(*(rows[number - 1] for number in batch.example_rows), strict=True)
        inputs = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        )
        yield inputs, torch.tensor(labels)


def train(model, optimizer, batches, loss_of, scheduler=None):
    """The loop that all listings have; the losses."""
    model.train()
    losses = []
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = loss_of(model, inputs, labels)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return np.array(losses)


def own_loss(model, inputs, labels):
    return model(**inputs, labels=labels).loss


def assert_equal(ours, theirs):
    assert len(theirs) == STEPS
    assert np.ptp(theirs) > 0.01  # the optimizer has moved
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def load(directory):
    cls = transformers.BertForSequenceClassification
    return cls.from_pretrained(directory, classifier_dropout=0.0)


def head_of(directory):
    """The options that load what `load` does."""
    return ["--model.path", directory, "--model.config.classifier_dropout", 0]


class PooledLinear(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(directory)
        self.linear = torch.nn.Linear(32, 2)

    def forward(self, inputs):
        return self.linear(self.bert(**inputs).pooler_output)


def table(path, rows, header):
    """A file of text and label."""
    lines = [header] if header else []
    path.write_text("\n".join([*lines, *(f"{text}\t{label}" for text, label in rows)]) + "\n")
    return path


def test_imdb(classifier, rows, tmp_path):
    names = ["neg", "pos"]
    for number, (text, label) in enumerate(rows):
        path = tmp_path / names[label] / f"{number:02}_1.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    data = ["--data.train", f"[{tmp_path}]", "--data.dev", "[]"]
    config, batches, losses = ours("imdb", "--model.path", classifier, *data, *RATE)
    assert (config.optimizer.learning_rate, config.data.max_length) == (1e-5, 512)

    model = PooledLinear(classifier)
    saved = transformers.BertForSequenceClassification.from_pretrained(classifier)
    model.linear.load_state_dict(saved.classifier.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    criterion = torch.nn.CrossEntropyLoss()
    theirs = train(
        model,
        optimizer,
        tokenized(classifier, rows, batches),
        lambda model, inputs, labels: criterion(model(inputs), labels),
    )
    assert_equal(losses, theirs)


# AdamW's own decay is 0.01; with much more six steps show which parameters it is of.
ADAMW = [*RATE, "--optimizer.weight_decay", 1.0]


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1.0)


@pytest.mark.parametrize("name", ["bert_adamw", "finetuning"])
def test_adamw(name, classifier, rows, tmp_path):
    file = table(tmp_path / "rows.txt", rows, header=None)
    data = ["--data.train", f"[{file}]", "--data.dev_fraction", 0]
    config, batches, losses = ours(f"listings/{name}", *data, *head_of(classifier), *ADAMW)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (2e-5, None)
    assert (config.train.batch_size, config.train.epochs) == (32, 3)

    model = load(classifier)
    theirs = train(model, adamw(model), tokenized(classifier, rows, batches), own_loss)
    assert_equal(losses, theirs)


def test_chinese_sentiment(classifier, rows, tmp_path):
    file = table(tmp_path / "rows.tsv", rows, header="text_a\tlabel")
    data = ["--data.train", f"[{file}]"]
    config, batches, losses = ours("listings/chinese_sentiment", *data, *head_of(classifier), *RATE)
    assert (config.optimizer.learning_rate, config.train.batch_size) == (5e-5, 16)
    assert len({number for batch in batches for number in batch.example_rows}) == 0.8 * ROWS

    model = load(classifier)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    scheduler = transformers.get_linear_schedule_with_warmup(
        optimizer, num_warmup_steps=0, num_training_steps=STEPS
    )
    theirs = train(model, optimizer, tokenized(classifier, rows, batches), own_loss, scheduler)
    assert_equal(losses, theirs)


def test_pretraining(save, tmp_path, rng):
    lines = [" ".join(rng.choice(list("abcdefghij"), n)) for n in rng.integers(2, 7, 60)]
    text = "\n\n".join("\n".join(lines[i : i + 6]) for i in range(0, 60, 6))
    (tmp_path / "train.txt").write_text(text)
    directory = save(transformers.BertForPreTraining)
    data = ["--data.train", f"[{tmp_path / 'train.txt'}]", "--data.dev", "[]"]
    path = ["--model.path", directory]
    config, batches, losses = ours("listings/pretraining", *data, *path, *ADAMW)
    assert config.optimizer.learning_rate == 2e-5

    def given():
        """What the listing's own code makes of pairs: masks and labels are those of the batch."""
        for batch in batches:
            arrays = {name: torch.tensor(np.array(x)).long() for name, x in batch.arrays.items()}
            labels = torch.full_like(arrays["input_ids"], -100)
            asked = arrays["label_weights"] > 0
            places = arrays["head_positions"]
            rows = torch.arange(len(places))[:, None].expand_as(places)
            labels[rows[asked], places[asked]] = arrays["labels"][asked]
            inputs = {
                "input_ids": arrays["input_ids"],
                "token_type_ids": arrays["token_type_ids"],
                "attention_mask": (arrays["segment_ids"] > 0).long(),
                "next_sentence_label": arrays["next_sentence_labels"][:, 0],
            }
            yield inputs, labels

    model = transformers.BertForPreTraining.from_pretrained(directory)
    assert_equal(losses, train(model, adamw(model), given(), own_loss))


def test_penalties(classifier, rows, tmp_path):
    file = table(tmp_path / "rows.tsv", rows, header="text\tlabel")
    data = ["--data.train", f"[{file}]", "--data.dev", "[]"]
    l1, l2 = 1e-4, 1e-3
    penalties = ["--optimizer.l1", l1, "--optimizer.l2", 2 * l2]
    config, batches, losses = ours(
        "listings/penalties",
        *data,
        *head_of(classifier),
        *penalties,
        *RATE,
    )
    assert (config.optimizer.l1, config.optimizer.l2 / 2) == (1e-7, 1e-6)

    model = load(classifier)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def loss_of(model, inputs, labels):
        loss = model(**inputs, labels=labels).loss
        l1_penalty = sum(parameter.abs().sum() for parameter in model.parameters())
        l2_penalty = sum(parameter.pow(2).sum() for parameter in model.parameters())
        return loss + l1 * l1_penalty + l2 * l2_penalty

    theirs = train(model, optimizer, tokenized(classifier, rows, batches), loss_of)
    assert_equal(losses, theirs)


OPTIMIZERS = {
    "sgd": (0.1, torch.optim.SGD),
    "momentum": (0.03, partial(torch.optim.SGD, momentum=0.9)),
    "rmsprop": (1e-3, torch.optim.RMSprop),
    "adagrad": (1e-2, torch.optim.Adagrad),
    "adam": (LR, torch.optim.Adam),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, classifier, rows, tmp_path):
    rate, make = OPTIMIZERS[name]
    file = table(tmp_path / "rows.tsv", rows, header="text\tlabel")
    data = ["--data.train", f"[{file}]", "--data.dev", "[]"]
    optimizer = ["--optimizer.name", name, "--optimizer.learning_rate", rate]
    _, batches, losses = ours("listings/optimizers", *data, *head_of(classifier), *optimizer)

    model = load(classifier)
    theirs = train(
        model,
        make(model.parameters(), lr=rate),
        tokenized(classifier, rows, batches),
        own_loss,
    )
    assert_equal(losses, theirs)
