"""The windows of a split, read, cut, checked, and kept on disk by content."""

import hashlib
import json
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from jaxllm import processes
from jaxllm.config_fields import DataConfig, QAConfig
from jaxllm.data import cache
from jaxllm.data.corpus import ReadReport
from jaxllm.data.squad import Faults, Question, Questions, Source, read_squad, squad_sources
from jaxllm.data.windows import WindowEncoder, Windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)
_CACHE_VERSION = 3  # raise when the same input comes to give other arrays
# Those of `Windows` that are never empty.
_ARRAYS = (
    *("tokens", "type_ids", "offsets", "labels", "rows"),
    *("question", "begin", "end", "source", "spans"),
)


def load_windows(
    data: DataConfig, qa: QAConfig, split: str, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[Windows, Questions]:
    """The windows of `split` "train" or "dev", and its questions in the order of their indices.

    They are kept on disk by content, and memory-mapped; not with ``data.streaming``.

    Raises:
        InputError: a file or a question is not as it should be, the lengths leave no room, or the
            processes of a run do not read the same.
    """
    with processes.together():
        windows, asked = _load(data, qa, split, tokenizer)
    processes.check_same(f"the questions of data.{split}", lambda: windows.fingerprint)
    report = windows.report
    left_out = "".join(f", left out: {n} × {reason}" for reason, n in report.dropped.items())
    _LOG.info("data.%s: %d questions in %d windows%s", split, report.kept, len(windows), left_out)
    if report.truncated:
        _LOG.warning(
            "data.%s: %d questions cut to qa.max_question_length=%d tokens",
            *(split, report.truncated, qa.max_question_length),
        )
    for remark in report.remarks:
        _LOG.warning("data.%s: %s", split, remark)
    assert windows.labels is not None
    if unknown := len(np.unique(windows.question[windows.labels[:, 0] < 0])):
        _LOG.warning(
            "data.%s: %d questions have no answer that stands at its answer_start; they count in "
            "EM and F1, not in the loss",
            *(split, unknown),
        )
    return windows, asked


def _load(
    data: DataConfig, qa: QAConfig, split: str, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[Windows, Questions]:
    encoder = WindowEncoder(tokenizer, data.max_length, qa)
    sources = squad_sources(data, split)
    limit = data.max_train_examples if split == "train" else data.max_dev_examples
    if data.streaming:
        return _read(sources, encoder, data, split, limit)
    content = {
        "task": "question-answering",
        "version": _CACHE_VERSION,
        "sources": [(source.name, source.fingerprint()) for source in sources],
        "tokenizer": encoder.fingerprint(),
        "settings": [data.max_length, qa.max_question_length, qa.doc_stride, data.on_bad_row],
        "form": [data.encoding, data.max_row_bytes],
        "limit": limit,
        "split": split,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    entry = cache.directory(data.cache_dir) / key
    found = cache.read(entry)
    if found is None:
        windows, asked = _read(sources, encoder, data, split, limit)
        with cache.writing_entry(entry) as store:
            for name in _ARRAYS:
                store.append(name, getattr(windows, name))
            about = {
                "report": asdict(windows.report),
                "cut": windows.cut.tolist(),
                "questions": [asdict(question) for question in asked.questions],
                "contexts": asked.contexts,
            }
            found = store.seal(about)
    arrays, about = found
    questions = [
        Question(**fields | {"answers": tuple((text, at) for text, at in fields["answers"])})
        for fields in about["questions"]
    ]
    return (
        Windows(
            **arrays,
            report=ReadReport(**about["report"]),
            cut=np.array(about["cut"], np.int64),
        ),
        Questions(questions, about["contexts"]),
    )


def _read(
    sources: list[Source], encoder: WindowEncoder, data: DataConfig, split: str, limit: int | None
) -> tuple[Windows, Questions]:
    faults = Faults(split)
    read = read_squad(sources, data, faults=faults, limit=limit, only_aligned=split == "train")
    windows, kept = encoder.windows(read, faults)
    count = len(kept.questions)
    dropped = faults.finish(count, data.on_bad_row)
    report = ReadReport(
        read=count + sum(dropped.values()),
        kept=count,
        dropped=dropped,
        truncated=len(windows.cut),
        remarks=faults.remarks,
    )
    return replace(windows, report=report), kept
