"""Sentence embeddings: pooling, pairs in rows, the contrastive loss, evaluation, prediction."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answering import predict, read_lines
from configurations import change
from safetensors.numpy import save_file
from transformers import BertTokenizer

from jaxllm import AutoModel
from jaxllm.config.fields import (
    Config,
    ContrastiveConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.config.reading import from_yaml, to_yaml
from jaxllm.data.loader import LoaderState, TrainLoader
from jaxllm.data.packing import Rows
from jaxllm.data.pairs import load_pairs
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.nn.pooling import Pooling
from jaxllm.nn.sharding import batch_sharding, make_mesh
from jaxllm.pretrained import hf, sentence_transformers
from jaxllm.pretrained.sentence_transformers import Settings
from jaxllm.runs import loop
from jaxllm.tasks import build, embedding
from jaxllm.tasks.evaluate import evaluate
from jaxllm.training import objectives

ST = "sentence_transformers.models"
MODES = {
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.max(0),
    "cls": lambda x: x[0],
    "lasttoken": lambda x: x[-1],
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / np.sqrt(len(x)),
    "weightedmean": lambda x: np.average(x, axis=0, weights=1 + np.arange(len(x))),
}
HEADER = "anchor,positive,negative,score\n"
ROWS = [  # row 3 has no positive, row 5 repeats the texts of row 1 in another pairing
    ("good movie", "great film", "bad phone", 5.0),
    ("the book was bad", "poor story", "good acting", 3.0),
    ("no pair", "", "so so", 4.0),
    ("one more time", "two more", "here", 4.0),
    ("great film", "good movie", "hate it", 4.5),
    ("it works", "it works well", "it broke", 1.0),
    ("love the music", "like the music", "never", 4.0),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_bert_config, tiny_tokenizer_dir):
    """Training on the pairs of ROWS, judged on the same rows but for the one that lacks a text."""
    directory = tmp_path_factory.mktemp("pairs")
    for name, rows in {"train": ROWS, "dev": [row for row in ROWS if row[1]]}.items():
        lines = [",".join(map(str, row)) + "\n" for row in rows]
        (directory / f"{name}.csv").write_text(HEADER + "".join(lines))
    attributes = {k: v for k, v in tiny_bert_config.to_diff_dict().items() if "version" not in k}
    size = len((tiny_tokenizer_dir / "vocab.txt").read_text().splitlines())
    attributes |= {"model_type": "bert", "vocab_size": size, "initializer_range": 0.2}
    return Config(
        model=ModelConfig(
            task="sentence-embedding", tokenizer=str(tiny_tokenizer_dir), config=attributes
        ),
        data=DataConfig(
            train=[str(directory / "train.csv")],
            dev=[str(directory / "dev.csv")],
            text="anchor",
            text_pair="positive",
            on_bad_row="drop",
            max_length=32,
            cache_dir=str(directory / "cache"),
        ),
        contrastive=ContrastiveConfig(score="score", positive_from=4.0),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(batch_size=8, eval_batch_size=8, steps=20, eval_every=10),
        run=RunConfig(dir=str(directory / "run"), trackers=[], progress=False),
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def texts_of(pairs, tokenizer):
    """The words of each text, without spaces, by group."""
    texts = [
        "".join(tokenizer.decode(tokens[1:-1]).split())
        for tokens in np.split(pairs.tokens, pairs.offsets[1:-1])
    ]
    return [tuple(texts[i : i + pairs.width]) for i in range(0, len(texts), pairs.width)]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_segment_is_pooled_by_itself(mode, normalize, rng):
    x_BTD = rng.normal(size=(2, 6, 4)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]])
    firsts = np.array([[0, 3, 0], [0, 1, 2]])
    pooled = jax.jit(Pooling(mode, normalize))(x_BTD, segments, firsts)
    for b, p in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
        expected = MODES[mode](x_BTD[b][segments[b] == p + 1])
        if normalize:
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(pooled[b, p], expected, rtol=1e-6, atol=1e-6)
    if mode not in ("cls", "lasttoken"):
        np.testing.assert_array_equal(pooled[0, 2], 0)

    def score(x_BTD):
        return jnp.sum(Pooling(mode, normalize)(x_BTD, segments, firsts)[0] ** 3)

    assert np.isfinite(jax.jit(jax.grad(score))(x_BTD)).all()


def test_training_pairs_are_the_usable_rows_of_a_high_score(config, tokenizer):
    pairs = load_pairs(config.data, config.contrastive, "train", tokenizer)
    assert pairs.rows.tolist() == [1, 4, 5, 7]
    assert pairs.labels.tolist() == [5.0, 4.0, 4.5, 4.0]
    assert texts_of(pairs, tokenizer) == [
        ("goodmovie", "greatfilm"),
        ("onemoretime", "twomore"),
        ("greatfilm", "goodmovie"),
        ("lovethemusic", "likethemusic"),
    ]
    assert pairs.text_ids.tolist() == [0, 1, 2, 3, 1, 0, 4, 5]
    assert pairs.report.read == 7
    assert sum(pairs.report.dropped.values()) == 3
    assert [*pairs.lengths] == [len(t) for t in np.split(pairs.tokens, pairs.offsets[2:-1:2])]
    assert pairs.lengths_of(np.array([2, 0])).tolist() == pairs.lengths[[2, 0]].tolist()


def test_all_pairs_without_a_threshold_and_a_negative_to_each(config, tokenizer):
    data, contrastive = config.data, ContrastiveConfig("negative", "score")
    twice = replace(data, train=data.train + data.dev)
    pairs = load_pairs(twice, contrastive, "train", tokenizer)
    assert pairs.rows.tolist() == [1, 2, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6]
    assert pairs.labels is None
    assert texts_of(pairs, tokenizer)[2] == ("onemoretime", "twomore", "here")
    assert load_pairs(data, contrastive, "dev", tokenizer).width == 2
    few = replace(data, max_train_examples=2)
    assert len(load_pairs(few, contrastive, "train", tokenizer)) == 2


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"text": "absent"}, r"no column 'absent' \(data\.text\)"),
        ("data", {"text_pair": "absent"}, r"no column 'absent' \(data\.text_pair\)"),
        ("contrastive", {"negative": "absent"}, r"no column 'absent' \(contrastive\.negative\)"),
        ("contrastive", {"score": "absent"}, r"no column 'absent' \(contrastive\.score\)"),
        (
            "contrastive",
            {"positive_from": 6.0},
            r"data\.train: no row is left of 7: .*6 × score below 6",
        ),
        ("data", {"on_bad_row": "error"}, r"missing text"),
    ],
)
def test_bad_data_is_named(section, fields, message, config, tokenizer):
    bad = change(config, **{section: fields})
    with pytest.raises(InputError, match=message):
        load_pairs(bad.data, bad.contrastive, "train", tokenizer)


def test_texts_of_a_pair_are_segments_of_one_row(config, tokenizer):
    pairs = load_pairs(config.data, config.contrastive, "train", tokenizer)
    rows = Rows(np.array([3, 0, 1]), np.array([0, 2, 3]))
    batch = pairs.fill(rows, row_length=32, height=3, packing=True)
    assert batch["label_weights"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0] * 4]
    assert batch["text_ids"][0].tolist() == [4, 5, 0, 1, 0, 0, 0, 0]
    for row, members in enumerate([[3, 0], [1]]):
        texts = [i for pair in members for i in (2 * pair, 2 * pair + 1)]
        for slot, text in enumerate(texts):
            tokens = pairs.tokens[pairs.offsets[text] : pairs.offsets[text + 1]]
            inside = batch["segment_ids"][row] == slot + 1
            np.testing.assert_array_equal(batch["input_ids"][row][inside], tokens)
            assert np.flatnonzero(inside)[0] == batch["head_positions"][row, slot]


def embed_ids(params, *, input_ids, key, **_):
    """In place of a model: each token's vector is a row of a table."""

    class Output:
        last_hidden_state = params[input_ids]

    return Output


def loss_of(pairs, params, *, packing, mesh=None, normalize=True):
    """((loss, metrics), gradient) of all pairs as one batch."""
    data = DataConfig(max_length=32, packing=packing, buckets=[32])
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    loader = TrainLoader(
        pairs, data=data, batch_size=16, seed=0, shards=4, sharding=batch_sharding(mesh)
    )
    batch = next(loader.batches(LoaderState())).arrays
    objective = objectives.contrastive(embed_ids, Pooling("mean", normalize), 0.5)

    def mean(params):
        loss, (metrics, _) = objective(params, batch, None)
        assert metrics["loss"][0] is loss
        return loss / metrics["loss"][1], metrics

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(mean, has_aux=True))(params)


def dev_metrics(pairs, params, config):
    """The metrics of a dev part."""
    mesh = make_mesh(devices=jax.devices()[:2])
    step = partial(objectives.embedded(embed_ids, Pooling("mean", False)), key=None)
    wanted = change(config, contrastive={"temperature": 0.5}, train={"eval_batch_size": 2})
    return embedding.PairsEvaluator(
        pairs, wanted, mesh, lambda *arguments: step(*arguments)[1]
    ).metrics(params)


def expected_loss(pairs, params, temperature):
    """InfoNCE written out, pair by pair; and the share of anchors that find their positive."""
    vectors = [params[tokens].mean(0) for tokens in np.split(pairs.tokens, pairs.offsets[1:-1])]
    vectors = [v / np.linalg.norm(v) for v in vectors]
    G = pairs.width
    losses, hits = [], 0
    ids = pairs.text_ids
    for a in range(0, len(vectors), G):
        right = {ids[i + 1] for i in range(0, len(ids), G) if ids[i] == ids[a]}
        own = np.exp(vectors[a] @ vectors[a + 1] / temperature)
        others = [
            np.exp(vectors[a] @ vectors[c] / temperature)
            for c in range(len(vectors))
            if c % G and ids[c] != ids[a] and ids[c] not in right
        ]
        losses.append(-np.log(own / (own + sum(others))))
        hits += own >= max(others)
    return np.mean(losses), hits / len(losses)


@pytest.mark.parametrize("negative", [None, "negative"])
@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_is_info_nce_over_the_batch(packing, negative, config, tokenizer, rng):
    pairs = load_pairs(config.data, ContrastiveConfig(negative), "train", tokenizer)
    params = rng.normal(size=(len(tokenizer), 8)).astype(np.float32)
    (loss, metrics), _ = loss_of(pairs, params, packing=packing)
    value, hits = expected_loss(pairs, params, 0.5)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(np.divide(*metrics["retrieval_accuracy"]), hits, rtol=1e-6)
    # Whether the vectors that are given out are of length 1 is another matter.
    (unscaled, _), _ = loss_of(pairs, params, packing=packing, normalize=False)
    np.testing.assert_allclose(unscaled, loss, rtol=1e-5)


# One query with two right passages; one of them is right for another query, too, and the other is
# the wrong passage of a third.
ALIKE = [
    ("good movie", "great film", "bad phone", 5.0),
    ("good movie", "fine story", "so so", 5.0),
    ("great plot", "fine story", "hate it", 5.0),
    ("poor story", "bad plot", "great film", 5.0),
]


def load_rows(rows, config, tokenizer, tmp_path):
    lines = [",".join(map(str, row)) + "\n" for row in rows]
    (tmp_path / "train.csv").write_text(HEADER + "".join(lines))
    files = {"train": [str(tmp_path / "train.csv")], "dev": [str(tmp_path / "train.csv")]}
    data, contrastive = replace(config.data, **files), ContrastiveConfig("negative")
    train, dev = (load_pairs(data, contrastive, split, tokenizer) for split in ("train", "dev"))
    return train, dev


def test_positives_of_one_anchor_are_no_negatives_of_each_other(config, tokenizer, tmp_path, rng):
    params = rng.normal(size=(len(tokenizer), 8)).astype(np.float32)
    three, two = load_rows(ALIKE[:2], config, tokenizer, tmp_path)
    assert float(loss_of(two, params, packing=True)[0][0]) == pytest.approx(0, abs=1e-6)
    assert dev_metrics(two, params, config)["loss"] == pytest.approx(0, abs=1e-6)
    assert float(loss_of(three, params, packing=True)[0][0]) > 0.01  # what is wrong stays wrong

    three, two = load_rows(ALIKE, config, tokenizer, tmp_path)
    for pairs in (three, two):
        loss = loss_of(pairs, params, packing=True)[0][0]
        np.testing.assert_allclose(loss, expected_loss(pairs, params, 0.5)[0], rtol=1e-5)
    loss, hits = expected_loss(two, params, 0.5)
    found = dev_metrics(two, params, config)
    assert found == pytest.approx({"loss": loss, "retrieval_accuracy": hits}, rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 1)])
def test_negatives_are_those_of_all_devices(shape, config, tokenizer, rng):
    pairs = load_pairs(config.data, ContrastiveConfig(), "train", tokenizer)
    params = rng.normal(size=(len(tokenizer), 8)).astype(np.float32)
    (one, _), one_grad = loss_of(pairs, params, packing=False)
    mesh = make_mesh(*shape, devices=jax.devices()[:4])
    (many, _), many_grad = loss_of(pairs, params, packing=False, mesh=mesh)
    np.testing.assert_allclose(many, one, rtol=1e-6)
    np.testing.assert_allclose(many_grad, one_grad, atol=1e-6)


def test_dev_metrics_are_those_of_all_pairs(config, tokenizer, rng, monkeypatch):
    pairs = load_pairs(config.data, config.contrastive, "dev", tokenizer)
    params = rng.normal(size=(len(tokenizer), 8)).astype(np.float32)
    monkeypatch.setattr(embedding, "BLOCK", 3)

    def metrics(pairs, **fields):
        return dev_metrics(pairs, params, change(config, contrastive=fields))

    unscored = replace(pairs, labels=None)
    found = metrics(unscored, score=None, positive_from=None)
    loss, hits = expected_loss(pairs, params, 0.5)
    assert found == pytest.approx({"loss": loss, "retrieval_accuracy": hits}, rel=1e-5)

    groups = [params[t].mean(0) for t in np.split(pairs.tokens, pairs.offsets[1:-1])]
    a, b = (np.stack(groups[i::2]) for i in (0, 1))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    scored = metrics(pairs)
    assert list(scored) == ["spearman", "pearson", "retrieval_accuracy", "loss"]
    assert scored["pearson"] == pytest.approx(np.corrcoef(cosine, pairs.labels)[0, 1], rel=1e-5)
    assert list(metrics(pairs, positive_from=None)) == ["spearman", "pearson"]


def test_train_evaluate_and_predict(config, tmp_path):
    loop.train(config, build.build)
    directory = Path(config.run.dir)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["train/steps"] == 20
    assert {"eval/spearman", "eval/retrieval_accuracy", "eval/loss"} <= set(summary)
    lines = read_lines(directory / "metrics.jsonl")
    early, late = [line["eval/loss"] for line in lines if "eval/loss" in line]
    assert late < early  # judged on the pairs that it is trained on

    model = str(directory / "model")
    again = change(config, model={"path": model, "config": {}}, run={"dir": str(tmp_path / "e")})
    values = evaluate(again)
    for name, value in values.items():
        assert summary[f"eval/{name}"] == pytest.approx(value, abs=1e-5)
    rows = read_lines(tmp_path / "e/evaluate/predictions.jsonl")
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0].keys() == {"row", "cosine", "score"}

    texts = ["the book was bad", "good", "one more time and then two more times"]
    lines = [json.dumps({"anchor": texts[0]}), *map(json.dumps, texts[1:]), "{}"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    counts = predict(model, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert counts == {"rows": 4, "errors": 1, "truncated": 0}
    answers = read_lines(tmp_path / "out.jsonl")
    trained, tokenizer = AutoModel.from_pretrained(model), load_tokenizer(model)
    for text, answer in zip(texts, answers, strict=False):
        x_TD = np.asarray(trained(np.array([tokenizer(text)["input_ids"]])).last_hidden_state[0])
        expected = x_TD.mean(0) / np.linalg.norm(x_TD.mean(0))
        np.testing.assert_allclose(answer["embedding"], expected, atol=1e-5)


def test_pooling_is_kept_beside_the_model(config, tiny_tokenizer_dir, tmp_path):
    model = AutoModel.from_config(hf.load_config(None, **config.model.config))
    model.save_pretrained(tmp_path / "m", tokenizer=tiny_tokenizer_dir)
    wanted = {"path": str(tmp_path / "m"), "config": {}}
    assert embedding.pooling_of(change(config, model=wanted)) == Pooling("mean", True)
    for pooling in (Pooling("cls", True), Pooling("max", False)):
        sentence_transformers.write(tmp_path / "m", pooling, width=32, max_length=7)
        assert embedding.pooling_of(change(config, model=wanted)) == pooling
        overruled = change(config, model=wanted | {"pooling": "mean", "normalize": True})
        assert embedding.pooling_of(overruled) == Pooling("mean", True)
    # Without jaxllm.json the model is known by those files, and so is its length.
    (tmp_path / "in.jsonl").write_text('"good"\n"so very good a film that it was bad"\n')
    predict(str(tmp_path / "m"), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    short, long = read_lines(tmp_path / "out.jsonl")
    assert long["truncated"]
    ids = np.array([load_tokenizer(tmp_path / "m")("good")["input_ids"]])
    x_TD = np.asarray(model(ids).last_hidden_state[0])
    np.testing.assert_allclose(short["embedding"], x_TD.max(0), rtol=1e-5, atol=1e-5)


def modules(*kinds):
    return [
        {"type": f"{ST}.{kind}", "path": f"{i}_{kind}" if i else ""} for i, kind in enumerate(kinds)
    ]


TEXT, OPTIONS = "sentence_bert_config.json", "config_sentence_transformers.json"
REFUSED = [
    ("modules.json", [{"type": "a.Dense", "path": "x"}], r"the module a\.Dense is not impl"),
    ("modules.json", [{"type": f"{ST}.Router", "path": "x"}], r"Router is not implemented, "),
    ("modules.json", modules("Transformer"), "found no Pooling"),
    ("modules.json", modules("Transformer", "Pooling", "Pooling"), "of the first two one each"),
    ("modules.json", modules("Transformer", "Pooling", "Normalize", "Dense"), "in this order"),
    ("modules.json", [{"type": f"{ST}.Pooling", "path": "../1_Pooling"}], "within the model's"),
    ("modules.json", [{"type": f"{ST}.Transformer", "path": "0_BERT"}], r"the directory '0_BERT'"),
    ("modules.json", [1], "the module None is not"),
    ("modules.json", {}, "holds a JSON dict, not a list"),
    ("1_Pooling/config.json", {"pooling_mode": "median"}, "by median is not implemented"),
    ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "by cls, mean is not"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "by nothing is not"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "no"}, "found 'no', expected bool"),
    ("1_Pooling/config.json", {"pooling_mode": "cls", "scale": 2}, "found scale: 2, which is not"),
    (TEXT, {"max_seq_length": "64"}, "max_seq_length: found '64', expected int"),
    (TEXT, {"max_seq_length": 0}, "max_seq_length: found 0, expected at least 1"),
    (TEXT, {"do_lower_case": "false"}, "do_lower_case: found 'false', expected bool"),
    (TEXT, {"transformer_task": "fill-mask"}, "found transformer_task: 'fill-mask', which is not"),
    (TEXT, {"tokenizer_args": {"do_lower_case": True}}, "found tokenizer_args: {'do_lower_case'"),
    (TEXT, {"model_args": {"num_hidden_layers": 1}}, "model_args: found .*, expected none"),
    (OPTIONS, {"prompts": ["query: "]}, "prompts: found .*, expected dict"),
    (OPTIONS, {"prompts": {"query": 1}}, "prompts: found .*, expected texts by name"),
    (OPTIONS, {"default_prompt_name": "find"}, "found 'find', expected one of .* query, document"),
    (OPTIONS, {"truncate_dim": -1}, "truncate_dim: found -1, expected at least 1"),
    (OPTIONS, {"model_type": "SparseEncoder"}, "found model_type: 'SparseEncoder', which is not"),
]


@pytest.mark.parametrize(("file", "content", "message"), REFUSED)
def test_what_is_not_implemented_is_refused(file, content, message, tmp_path):
    sentence_transformers.write(tmp_path, Pooling(), width=32, max_length=7)
    assert sentence_transformers.read(tmp_path) is not None
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        sentence_transformers.read(tmp_path)


def test_what_changes_no_vector_is_read_past(tmp_path):
    sentence_transformers.write(tmp_path, Pooling(), width=32, max_length=7)
    plain = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    text = {"unpad_inputs": True, "modality_config": plain, "query_length": 9, "tokenizer_args": {}}
    (tmp_path / TEXT).write_text(json.dumps(text | {"model_args": {"add_pooling_layer": False}}))
    options = {"similarity_fn_name": "dot", "__version__": {"pytorch": "2"}, "prompts": None}
    (tmp_path / OPTIONS).write_text(json.dumps(options | {"model_type": "SentenceTransformer"}))
    pooling, settings = sentence_transformers.read(tmp_path)
    assert pooling == Pooling()
    assert settings.prompts == {"query": "", "document": ""}
    assert settings == Settings(prompts=settings.prompts, similarity="dot")


def dense(directory, inputs=32, **changes):
    """A Dense module as sentence-transformers writes it."""
    directory.mkdir()
    config = {"in_features": inputs, "out_features": 3, "bias": True, **changes}
    (directory / "config.json").write_text(json.dumps(config))
    weight = np.sin(np.arange(3.0 * inputs, dtype=np.float32)).reshape(3, inputs) / 4
    tensors = {"linear.weight": weight, "linear.bias": np.ones(3, np.float32)}
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "torch.nn.Softmax"}, "found torch.nn.Softmax, expected one of"),
        ({"activation_function": "mine.Tanh"}, "found mine.Tanh, expected one of"),
        ({"use_residual": True}, "found use_residual: True, which is not implemented"),
        ({"module_input_name": "token_embeddings"}, "found module_input_name: 'token_embeddings'"),
        ({"out_features": 4}, r"expected \{'linear.weight': \(4, 32\)"),
        ({"bias": False}, r"expected \{'linear.weight': \(3, 32\)\}"),
    ],
)
def test_a_dense_module_of_another_kind_is_refused(changes, message, tmp_path):
    sentence_transformers.write(tmp_path, Pooling("mean", False), width=32, max_length=7)
    (tmp_path / "modules.json").write_text(json.dumps(modules("Transformer", "Pooling", "Dense")))
    dense(tmp_path / "2_Dense", **changes)
    with pytest.raises(InputError, match=message):
        sentence_transformers.read(tmp_path)


def test_texts_are_trained_on_as_they_are_predicted_and_the_files_written_again(
    config, tiny_bert_dir, tmp_path
):
    """Lower-cased, with the prompt, which is left out of the pooling."""
    model = tmp_path / "model"
    shutil.copytree(tiny_bert_dir, model)
    tokenizer = BertTokenizer(vocab=str(Path(config.model.tokenizer) / "vocab.txt"))
    cased = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)
    cased.save_pretrained(model)
    prompts = {"query": "", "document": "", "find": "The Story "}
    settings = Settings(True, prompts, "find", False, 16, "dot")
    pooling = Pooling("mean", False, width=9)
    sentence_transformers.write(model, pooling, width=32, max_length=16, settings=settings)
    (tmp_path / "upper.csv").write_text(HEADER + "GOOD Movie,Great film,,5.0\n")
    upper = change(
        config,
        model={"path": str(model), "config": {}, "tokenizer": None},
        data={"train": [str(tmp_path / "upper.csv")], "dev": []},
    )
    task = embedding.prepare(upper, cased)
    first, second = np.split(task.train.tokens, task.train.offsets[1:-1])
    assert first.tolist() == tokenizer("the story good movie")["input_ids"]
    assert second.tolist() == tokenizer("the story great film")["input_ids"]
    task.save_extras(tmp_path)
    again, settings_again = sentence_transformers.read(tmp_path)
    assert (again, settings_again) == (pooling, settings)
    assert cased.tokenize("GOOD") == ["[UNK]"]  # the tokenizer that is saved with it is as before

    lines = ["GOOD Movie", "good movie"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(text) + "\n" for text in lines))
    predict(str(model), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    for answer in read_lines(tmp_path / "out.jsonl"):
        x_TD = np.asarray(AutoModel.from_pretrained(model)(first[None]).last_hidden_state[0])
        # [CLS], the, story
        np.testing.assert_allclose(answer["embedding"], x_TD[3:].mean(0)[:9], rtol=1e-5, atol=1e-5)

    with pytest.raises(InputError, match=r"data\.truncation: found left, expected right"):
        embedding.prepare(change(upper, data={"truncation": "left"}), cased)
    with pytest.raises(InputError, match=r"leaves no room .* and those of the prompt"):
        embedding.prepare(change(upper, data={"max_length": 8}), cased)


def test_a_dense_module_is_trained_and_written_again(config, tiny_bert_dir, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert_dir, model)
    sentence_transformers.write(model, Pooling("mean", True), width=32, max_length=16)
    (model / "modules.json").write_text(json.dumps(modules("Transformer", "Pooling", "Dense")))
    dense(model / "2_Dense", activation_function="torch.nn.modules.activation.Tanh")
    started = change(
        config,
        model={"path": str(model), "config": {}, "tokenizer": None},
        optimizer={"warmup": 0.0},
        run={"dir": str(tmp_path / "run")},
    )
    job = build.build(started)
    [before] = sentence_transformers.read(model)[0].layers
    np.testing.assert_array_equal(job.state.params["dense"]["0"]["kernel"], before.kernel)
    batch = next(job.loader.batches(LoaderState()))
    state, _ = job.train_step(job.state, batch.arrays)
    job.export(state.params, tmp_path / "new")
    pooling, _ = sentence_transformers.read(tmp_path / "new")
    [layer] = pooling.layers
    assert (layer.activation, pooling.normalize) == ("Tanh", False)
    for name, array in state.params["dense"]["0"].items():
        assert np.abs(layer.params[name] - before.params[name]).max() > 1e-4
        np.testing.assert_array_equal(layer.params[name], array)

    (tmp_path / "in.jsonl").write_text('"good movie"\n')
    predict(str(tmp_path / "new"), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    ids = np.array([load_tokenizer(model)("good movie")["input_ids"]])
    x_D = AutoModel.from_pretrained(tmp_path / "new")(ids).last_hidden_state[0].mean(0)
    expected = np.tanh(np.asarray(x_D) @ layer.kernel + layer.bias)
    [answer] = read_lines(tmp_path / "out.jsonl")
    np.testing.assert_allclose(answer["embedding"], expected, rtol=1e-5, atol=1e-5)

    values = job.evaluate(state.params)
    again = change(started, model={"path": str(tmp_path / "new")})
    assert evaluate(again) == pytest.approx(values, abs=1e-5)
    shutil.rmtree(model / "2_Dense")
    dense(model / "2_Dense", inputs=31)
    with pytest.raises(InputError, match="a Dense of 31 inputs behind vectors of 32 numbers"):
        build.build(started)


def test_pooling_as_version_6_writes_it(tmp_path):
    sentence_transformers.write(tmp_path, Pooling("mean", False), width=32, max_length=7)
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    assert sentence_transformers.read(tmp_path)[0] == Pooling("cls", False)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"text_pair": None}}, r"data\.text_pair: found None"),
        ({"contrastive": {"score": None}}, r"contrastive\.positive_from: found 4\.0"),
        ({"contrastive": {"negative": "anchor"}}, r"found 'anchor', expected another column"),
        ({"data": {"max_length": 5}}, r"data\.max_length: found 5, expected at least 6"),
        ({"contrastive": {"temperature": 0.0}}, r"contrastive\.temperature: found 0\.0"),
        ({"train": {"accumulation": 2}}, r"train\.accumulation: found 2, expected 1"),
        ({"train": {"label_smoothing": 0.1}}, r"train\.label_smoothing: found 0\.1"),
        ({"model": {"task": "sequence-classification"}}, r"contrastive\.score: found 'score'"),
    ],
)
def test_settings_at_odds_are_refused(sections, message, config, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(change(config, **sections)))
    with pytest.raises(InputError, match=message):
        from_yaml(tmp_path / "config.yaml")


def test_a_metric_that_the_dev_part_does_not_have(config, tokenizer):
    unscored = change(config, contrastive={"score": None, "positive_from": None})
    wrong = change(unscored, train={"metric": "spearman"})
    with pytest.raises(InputError, match="expected one of retrieval_accuracy, loss"):
        embedding.prepare(wrong, tokenizer)
    with pytest.raises(InputError, match="'f1', expected one of retrieval_accuracy, loss, which"):
        embedding.prepare(change(unscored, data={"dev": []}, train={"metric": "f1"}), tokenizer)
    assert embedding.prepare(unscored, tokenizer).metric == "retrieval_accuracy"
