"""The windows of a split, read, cut, checked, and kept on disk by content."""

import logging
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.config.fields import DataConfig, QAConfig
from jaxllm.data import cache
from jaxllm.data.corpus import ReadReport
from jaxllm.data.squad import Faults, Question, Questions, Source, read_squad, squad_sources
from jaxllm.data.tokenizer import vocabulary_size
from jaxllm.data.windows import WindowEncoder, Windows
from jaxllm.runtime import processes

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
    entry = None
    if not data.streaming:
        entry = cache.entry_of(
            data,
            ("max_length", "on_bad_row", "encoding", "max_row_bytes"),
            task="question-answering",
            version=_CACHE_VERSION,
            sources=[(source.name, source.fingerprint()) for source in sources],
            tokenizer=encoder.fingerprint(),
            settings=[qa.max_question_length, qa.doc_stride, data.limit(split), split],
        )

    def build(store: cache.Store) -> dict[str, Any]:
        windows, asked = _read(sources, encoder, data, split)
        for name in _ARRAYS:
            store.append(name, getattr(windows, name))
        return {
            "report": asdict(windows.report),
            "cut": windows.cut.tolist(),
            "questions": [asdict(question) for question in asked.questions],
            "contexts": asked.contexts,
        }

    arrays, about = cache.load(entry, build, partial(_fault, vocabulary_size(tokenizer)))
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


def _fault(vocabulary: int, arrays: cache.Arrays, about: dict[str, Any]) -> str | None:
    """What is wrong with the arrays of windows; see `cache.load`."""
    total, count, spans = (len(arrays[name]) for name in ("tokens", "rows", "spans"))
    lengths = dict.fromkeys(("labels", "question", "begin", "end", "source"), count)
    lengths["type_ids"] = total
    within = {"tokens": (0, vocabulary), "question": (0, len(about["questions"]))}
    problem = cache.array_fault(arrays, lengths=lengths, within=within, offsets={"offsets": total})
    if problem is not None:
        return problem
    begin, end, source, labels = (arrays[name] for name in ("begin", "end", "source", "labels"))
    tokens = np.diff(arrays["offsets"])
    fits = (0 <= begin) & (begin <= end) & (end <= tokens)
    fits &= (0 <= source) & (source + end - begin <= spans)
    if not (fits & (labels >= -1).all(1) & (labels.max(1) < tokens)).all():
        return "windows reach beyond their tokens"
    return None


def _read(
    sources: list[Source], encoder: WindowEncoder, data: DataConfig, split: str
) -> tuple[Windows, Questions]:
    faults = Faults(split)
    aligned, limit = split == "train", data.limit(split)
    read = read_squad(sources, data, faults=faults, limit=limit, only_aligned=aligned)
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
