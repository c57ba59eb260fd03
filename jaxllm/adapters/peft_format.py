"""Adapters as `peft` stores them: adapter_config.json and adapter_model.safetensors, in and out.

Of a dense layer there are lora_A [r, in] and lora_B [out, r], each a `.weight`; of an embedding
lora_embedding_A [r, V] and lora_embedding_B [D, r], which are no `.weight`. Modules that were
trained whole lie under their own names.
"""

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.adapters.lora import WEIGHTS, A, B, check_tied, is_adapter, merge
from jaxllm.config.fields import LoraConfig
from jaxllm.errors import InputError
from jaxllm.files import read_json
from jaxllm.models import Params, family_of
from jaxllm.names.table import Leaf, Table
from jaxllm.pretrained.formats import Tensor, read_file
from jaxllm.pretrained.hf import resolve
from jaxllm.pretrained.loading import WEIGHT_DTYPES
from jaxllm.pretrained.saving import write_json, write_safetensors
from jaxllm.pretrained.tensors import all_finite
from jaxllm.trees import flatten, unflatten

CONFIG = "adapter_config.json"
FILES = {"safetensors": "adapter_model.safetensors", "torch": "adapter_model.bin"}
# peft's task types; a head that it has no type for has none.
TASK_TYPES = {
    "base": "FEATURE_EXTRACTION",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "causal-lm": "CAUSAL_LM",
}
PREFIX = "base_model.model."
# Of a module that was trained whole, and of an embedding that peft saves beside its A and B.
_WRAPPED = re.compile(r"\.(modules_to_save(\.default)?|base_layer)\.")
_PART = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.default)?(\.weight)?")
_EXPECTED = {"peft_type": "LORA", "use_dora": False, "bias": "none"}
# Ways of drawing A and B that change the base's weights, which are then not those of its file.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftAdapter:
    """What an adapter's directory holds for a model, in our paths and layouts, float32.

    lora: A and B by path; W + A B is the adapted weight, their scale is in B.
    whole: parameters to take in place of the base's.
    """

    where: Path
    lora: dict[str, np.ndarray]
    whole: dict[str, np.ndarray]

    @property
    def layers(self) -> dict[str, int]:
        """The paths of the layers that are adapted, and the rank of each."""
        ranks = {path: x.shape[-1] for path, x in self.lora.items() if path.endswith(f"/{A}")}
        return {path.removesuffix(f"/{A}"): rank for path, rank in ranks.items()}

    def merged(self, params: Params) -> Params:
        """The base's parameters with A B added to them."""
        return merge(unflatten({**flatten(params), **self.lora}), 1.0)


def read(path: str | Path, config: Any, abstract: Params, head: str) -> PeftAdapter:
    """The adapter at `path`, a directory or a Hub id, for the model of these abstract parameters.

    Raises:
        InputError: no adapter there, one of another kind than LoRA, or of another base.
    """
    where = resolve(path, weights=False)
    about, tensors = _files(where)
    table = family_of(config).table
    shapes = {name: tuple(x.shape) for name, x in flatten(abstract).items()}
    base = about.get("base_model_name_or_path")
    parts: dict[str, dict[str, np.ndarray]] = {}
    whole: dict[str, dict[str, np.ndarray]] = {}
    strange = []
    for name, tensor in tensors.items():
        own = re.sub(_WRAPPED, ".", name.removeprefix(PREFIX))
        part = _PART.fullmatch(own)
        module = part[1] if part else own.rpartition(".")[0]
        canonical, _ = table.canonical(f"{module}.weight" if part else own)
        if table.leaf_of(canonical) is None or not name.startswith(PREFIX):
            strange.append(name)
        elif part:
            parts.setdefault(canonical, {})[part[3]] = _array(where, name, tensor)
        else:
            whole[canonical] = {name: _array(where, name, tensor)}
    if strange:
        raise InputError(
            f"{where}: found {len(strange)} tensors that this {config.model_type} has no layers "
            f"for: {', '.join(sorted(strange)[:5])}{', …' if len(strange) > 5 else ''}; expected a "
            f"LoRA of this model, but its base is {base!r}; give that as the model's path"
        )
    lora: dict[str, np.ndarray] = {}
    taken: set[str] = set()
    for leaf in table.leaves:
        layer, _, weight = leaf.path.rpartition("/")
        if leaf.path not in shapes or weight not in WEIGHTS:
            continue
        names = leaf.names(shapes[leaf.path][0])
        if parts.keys().isdisjoint(names):
            continue
        taken |= set(names)
        found = [_scaled(where, about, table, head, name, parts.get(name)) for name in names]
        a, b = _stacked(where, base, leaf, found, shapes[leaf.path])
        lora |= {f"{layer}/{A}": a, f"{layer}/{B}": b}
    if absent := sorted(parts.keys() - taken):
        raise InputError(
            f"{where}: found an adapter of {absent[0]}, which this {config.model_type} lacks; "
            f"expected a LoRA of this model, but its base is {base!r}"
        )
    adapter = PeftAdapter(where, lora, _whole(where, table, whole, shapes))
    check_tied(list(adapter.layers), head, abstract, str(where))
    return adapter


def _files(where: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of an adapter that can be read as a LoRA."""
    file = where / CONFIG
    if not file.is_file():
        raise InputError(f"{where} has no {CONFIG}; expected the directory of an adapter of peft")
    about = read_json(file, dict, "the config of an adapter, a JSON object")
    for key, expected in _EXPECTED.items():
        if (value := about.get(key, None if key == "peft_type" else expected)) != expected:
            raise InputError(
                f"{file}: {key}: found {value!r:.80}, expected {expected!r}; merge this adapter "
                "with peft's merge_and_unload, and save the model"
            )
    start = about.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_BASE):
        raise InputError(
            f"{file}: found init_lora_weights {start!r:.80}, which changes the base's weights; "
            "expected an adapter of the base as it is: save it with peft's "
            "path_initial_model_for_weight_conversion"
        )
    for key in ("r", "lora_alpha"):
        value = about.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{file}: {key}: found {value!r:.80}, expected a number above 0")
    if not isinstance(about.get("alpha_pattern") or {}, dict):
        raise InputError(f"{file}: alpha_pattern: expected an object of numbers")
    for kind, name in FILES.items():
        if (where / name).is_file():
            return about, read_file(where / name, kind)
    raise InputError(f"{where} has no weights; looked for {', '.join(FILES.values())}")


def _array(where: Path, name: str, tensor: Tensor) -> np.ndarray:
    array = tensor.read()
    if array.dtype not in WEIGHT_DTYPES or not all_finite(array.astype(np.float32)):
        raise InputError(
            f"{where}: tensor {name} is {array.dtype} and not of finite numbers everywhere; "
            "expected finite float32 weights"
        )
    return array.astype(np.float32)


def _scaled(
    where: Path, about: dict[str, Any], table: Table, head: str, name: str, parts: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """(A [r, in], B [out, r] with the scale of its module in it); None where it has no adapter."""
    if parts is None:
        return None
    module = name.removesuffix(".weight")
    if parts.keys() != {"A", "B"}:
        raise InputError(f"{where}: found one of {module}'s A and B, expected both")
    a, b = parts["A"], parts["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise InputError(
            f"{where}: found A {list(a.shape)} and B {list(b.shape)} of {module}, expected [r, in] "
            "and [out, r]"
        )
    patterns: dict[str, Any] = about.get("alpha_pattern") or {}
    names = {module, *(table.stored_name(module, task, flax=False) for task in (head, "base"))}
    own = [x for p, x in patterns.items() if any(re.fullmatch(rf"(.*\.)?({p})", n) for n in names)]
    alpha, rank = float(own[0] if own else about["lora_alpha"]), a.shape[0]
    return a, b * (alpha / (math.sqrt(rank) if about.get("use_rslora") else rank))


def _stacked(
    where: Path, base: Any, leaf: Leaf, found: list[Any], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """A [L, *in, R] and B [L, R, *out] of one parameter, zeros where a layer has no adapter."""
    one = shape[1:] if leaf.stacked else shape
    inputs = 1 if leaf.inputs is None else leaf.inputs
    (n_in, n_out), (i, n) = (math.prod(one[:inputs]), math.prod(one[inputs:])), leaf.part
    rank = max(a.shape[0] for a, _ in filter(None, found))
    a_all, b_all = np.zeros((len(found), n_in, rank)), np.zeros((len(found), rank, n_out))
    for layer, pair in enumerate(found):
        if pair is None:
            continue
        a, b = pair
        if (a.shape[1], b.shape[0]) != (n_in, n_out * n):
            raise InputError(
                f"{where}: found an adapter from {a.shape[1]} to {b.shape[0]} numbers for "
                f"{leaf.names(len(found))[layer]}, which has {n_in} and {n_out * n}; expected a "
                f"LoRA of this model, its base is {base!r}"
            )
        a_all[layer, :, : len(a)], b_all[layer, : len(a)] = a.T, np.split(b, n)[i].T
    lead = (len(found),) if leaf.stacked else ()
    a_ours, b_ours = (x.astype(np.float32) for x in (a_all, b_all))
    return a_ours.reshape(*lead, *one[:inputs], rank), b_ours.reshape(*lead, rank, *one[inputs:])


def _whole(
    where: Path, table: Table, whole: dict[str, dict[str, np.ndarray]], shapes: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Parameters of modules that were trained whole; of a head that the model lacks none."""
    found = {}
    for canonical, named in whole.items():
        leaf = table.leaf_of(canonical)
        assert leaf is not None
        ((name, array),) = named.items()
        if leaf.path not in shapes and table.head(leaf) is not None:
            continue
        if leaf.stacked or leaf.path not in shapes:
            raise InputError(
                f"{where}: found {name}, a layer of a block that was trained whole; merge this "
                "adapter with peft's merge_and_unload, and save the model"
            )
        shape = shapes[leaf.path]
        expected = leaf.stored_shape(shape, flax=False)
        if array.shape != expected:
            raise InputError(
                f"{where}: found {name} {list(array.shape)}, this model has {list(expected)}; for "
                "a classifier of another size set num_labels to its own"
            )
        found[leaf.path] = leaf.to_ours(array, shape, flax=False)
    return found


def write(
    directory: Path, params: Params, config: Any, head: str, spec: LoraConfig, base: str | None
) -> None:
    """Writes the adapters among `params`, and its other parameters as modules trained whole.

    `config`, `head`: of the model. `base`: where its weights are, for whoever loads the adapter.
    """
    table, flat = family_of(config).table, flatten(params)
    kept = {path: np.asarray(x, np.float32) for path, x in flat.items()}
    stored = partial(table.stored_name, task=head, flax=False)
    modules: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    leaves: dict[str, Leaf] = {}
    arrays: dict[str, np.ndarray] = {}
    for path in [path for path in kept if path.endswith(f"/{A}")]:
        layer = path.removesuffix(f"/{A}")
        leaf = table.by_path[f"{layer}/{WEIGHTS[_is_embedding(table, layer)]}"]
        a, b = kept[path], kept[f"{layer}/{B}"]
        pairs = zip(a, b, strict=True) if leaf.stacked else [(a, b)]
        for name, (one_a, one_b) in zip(leaf.names(len(a)), pairs, strict=True):
            module = stored(name).removesuffix(".weight")
            leaves[module] = leaf
            flat_a, flat_b = one_a.reshape(-1, spec.rank), one_b.reshape(spec.rank, -1)
            modules.setdefault(module, {})[leaf.part[0]] = flat_a.T, flat_b.T
    ranks: dict[str, int] = {}
    for module, parts in modules.items():
        a, b = _fused(parts, leaves[module].part[1])
        if leaves[module].inputs is None:
            arrays |= {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b}
        else:
            arrays |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        if len(a) != spec.rank:
            ranks[module] = len(a)
    whole = [path for path in kept if not is_adapter(path)]
    for path in whole:
        leaf = table.by_path[path]
        arrays[stored(leaf.name)] = leaf.to_stored(kept[path], flax=False)
    about = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(head),
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": _shortest(
            list(modules), [stored(module.name) for module in table.modules]
        ),
        "modules_to_save": sorted({_top(table, path) for path in whole}) or None,
        # A fused layer has the ranks of its parts, and is scaled as they are.
        "rank_pattern": ranks,
        "alpha_pattern": {module: spec.alpha * rank / spec.rank for module, rank in ranks.items()},
        "fan_in_fan_out": any(leaf.conv1d for leaf in leaves.values()),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    directory.mkdir(parents=True)
    write_json(directory / CONFIG, about)
    named = {f"{PREFIX}{name}": array for name, array in arrays.items()}
    write_safetensors(directory / FILES["safetensors"], named)


def _is_embedding(table: Table, layer: str) -> bool:
    return f"{layer}/embedding" in table.by_path


def _fused(
    parts: dict[int, tuple[np.ndarray, np.ndarray]], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(A [n r, in], B [out, n r]) of a layer out of n adapters of its `count` parts: each B stands
    where its part's outputs are, and is multiplied with its own A.
    """
    (_, one), *_ = parts.values()
    out, rank = one.shape
    b = np.zeros((count * out, len(parts) * rank), np.float32)
    for place, (i, (_, own)) in enumerate(sorted(parts.items())):
        b[i * out : (i + 1) * out, place * rank : (place + 1) * rank] = own
    return np.concatenate([a for _, (a, _) in sorted(parts.items())]), b


def _shortest(modules: list[str], known: list[str]) -> list[str]:
    """The last parts of the names of these modules, where no other module ends so; else all names.

    `known`: all modules, `{}` for the layer.
    """
    last = {name.rpartition(".")[2] for name in modules}
    of_layers = {re.sub(r"\.\d+\.", ".{}.", name, count=1) for name in modules}
    others = {name.rpartition(".")[2] for name in set(known) - of_layers}
    return sorted(last) if last.isdisjoint(others) else sorted(modules)


def _top(table: Table, path: str) -> str:
    """The first part of a head's name, which peft takes for the whole module."""
    return table.stored_name(table.by_path[path].name, "base", flax=False).partition(".")[0]
