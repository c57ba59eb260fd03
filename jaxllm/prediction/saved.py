"""A saved model on its devices, and what it needs to read text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm import models
from jaxllm.attention.backends import attention_on
from jaxllm.data.fit import check_fit
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.models import Compute, Graph
from jaxllm.models.arguments import dtype_name
from jaxllm.nn.sharding import batch_sharding
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf
from jaxllm.pretrained.saving import INPUT_FILE
from jaxllm.pretrained.storage import OneModel, load_saved


@dataclass(frozen=True)
class SavedModel:
    """A saved model on its devices, and what it needs to read text."""

    directory: Path
    config: Any
    tokenizer: Any
    form: InputFormat
    mesh: Mesh
    compute: Compute
    graph: Graph
    params: Any

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        mesh: Mesh,
        heads: Mapping[str, str],
        dtype: Any = "float32",
    ) -> "SavedModel":
        """The model at `path`, for the task that `InputFormat.load` finds.

        heads: what a model ends in, by task. dtype: of the computation.

        Raises:
            InputError: no model there, one whose weights lack the task's head, no tokenizer.
        """
        directory = hf.resolve(path)
        config = hf.load_config(directory)
        tokenizer = load_tokenizer(directory)
        longest = min(models.max_tokens(config), tokenizer.model_max_length)
        form = InputFormat.load(
            directory, max_length=longest, architectures=config.architectures or ()
        )
        pair = form.text_pair is not None or form.task == "multiple-choice"
        key = f"{directory / INPUT_FILE}: max_length"
        check_fit(config, tokenizer, form.max_length, pair=pair, key=key)
        head = heads[form.task]
        compute = Compute(dtype_name(dtype), attention_on("auto", mesh))
        _, graph, params = load_saved(path, OneModel(head, config), mesh, compute)
        return cls(directory, config, tokenizer, form, mesh, compute, graph, params)

    def forward(self, pick: Callable[[Any], Any]) -> Callable[[dict[str, np.ndarray]], Any]:
        """The jitted model: arrays of rows to what `pick` takes of its output."""
        return self.compiled(lambda model, rows: pick(model(**rows)))

    def compiled(
        self, compute: Callable[[Any, dict[str, jax.Array]], Any]
    ) -> Callable[[dict[str, np.ndarray]], Any]:
        """`compute(module, rows)`, jitted and on the mesh; `module(**rows)` is the model's output,
        `module.stack.encode(ids, …)` that of its encoder.
        """
        jitted = jax.jit(lambda params, rows: compute(self.graph.merge(params), rows))

        def call(rows: dict[str, np.ndarray]) -> Any:
            with jax.set_mesh(self.mesh):
                return jitted(self.params, jax.device_put(rows, batch_sharding(self.mesh)))

        return call
