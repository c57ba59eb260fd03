"""A model whose adapters are trained, as it is stored: merged, and the adapter alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxllm.adapters import lora, peft_format
from jaxllm.adapters.peft_format import PeftAdapter
from jaxllm.config.fields import LoraConfig
from jaxllm.errors import InputError
from jaxllm.models import Compute, Graph, Params, family_of
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import Init, OneModel
from jaxllm.trees import flatten, unflatten

DIRECTORY = "adapter"  # within the directory of the merged model
# Heads with outputs for a task's labels: they are trained whole, as in peft.
LABEL_HEADS = (
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
)


@dataclass(frozen=True)
class LoraModel:
    """A StoredModel whose parameters are those of `base` and adapters of it.

    path: where the weights of `base` are, as the user gives it.
    seed: of random adapters.
    adapter: the adapters to begin with; None: random ones.
    """

    base: OneModel
    spec: LoraConfig
    path: str
    seed: int = 0
    adapter: PeftAdapter | None = None

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def head(self) -> str:
        return self.base.head

    @property
    def answers(self) -> str:
        return self.base.answers

    def parts(self, compute: Compute) -> tuple[Graph, Params]:
        graph, abstract = self.base.parts(compute)
        paths = lora.targets(graph, abstract, self.head, self.spec)
        if self.adapter is not None:
            self._check_continued(self.adapter, paths)
        return lora.adapted(graph, abstract, paths, self.spec)

    def _check_continued(self, adapter: PeftAdapter, paths: list[str]) -> None:
        found, expected = adapter.layers, dict.fromkeys(paths, self.spec.rank)
        if found != expected:
            ranks = sorted(set(found.values()))
            raise InputError(
                f"model.adapter: {adapter.where} has rank {', '.join(map(str, ranks))} and adapts "
                f"{', '.join(sorted(found))}, expected lora.rank={self.spec.rank} and "
                f"{', '.join(sorted(expected))}; to train it on, set lora.rank and lora.targets to "
                "its own"
            )

    def trains(self, path: str) -> bool:
        """Whether the parameter is trained; all others stay as they are."""
        in_trunk = path.split("/")[0] in family_of(self.config).table.trunk
        return lora.is_adapter(path) or (self.head in LABEL_HEADS and not in_trunk)

    def init(self, seed: int) -> Params:
        """Without the adapters, which `load` draws."""
        return self.base.init(seed)

    def save(self, directory: Path, params: Any, tokenizer: Any) -> None:
        """The merged model, and in `adapter` of its directory what was trained."""
        self.base.save(directory, lora.merge(params, self._scale), tokenizer)
        trained = {path: x for path, x in flatten(params).items() if self.trains(path)}
        about = self.config, self.head, self.spec, _absolute(self.path)
        peft_format.write(directory / DIRECTORY, unflatten(trained), *about)

    def load(self, directory: Path, abstract: Any, init: Init) -> Any:
        flat = flatten(abstract)
        adapters = {path: x for path, x in flat.items() if lora.is_adapter(path)}
        own = {path: x for path, x in flat.items() if path not in adapters}

        def checked(path: str) -> Any:
            if not self.trains(path) and self.head != "base":
                raise InputError(
                    f"{directory}: {path} is not in the weights, and with lora.rank only adapters "
                    "are trained, so it would stay random; expected weights with this head"
                )
            return init(path)

        params = self.base.load(directory, unflatten(own), checked)
        shardings = {path: x.sharding for path, x in adapters.items()}
        if self.adapter is None:
            draw = jax.jit(lambda: flatten(lora.init(abstract, self.seed)), out_shardings=shardings)
            start = draw()
        else:
            scale = {lora.A: 1.0, lora.B: self._scale}
            stored = self.adapter.lora
            scaled = {path: stored[path] / scale[path.rpartition("/")[2]] for path in adapters}
            start = jax.device_put(scaled, shardings)
        return unflatten({**flatten(params), **start})

    @property
    def _scale(self) -> float:
        return self.spec.alpha / self.spec.rank


def _absolute(path: str) -> str:
    """A path that is the same seen from everywhere; a Hub id is."""
    is_local = path.startswith("package:") or Path(path).expanduser().is_dir()
    return str(hf.resolve(path).absolute()) if is_local else path
