"""`jaxllm predict` as the command calls it: with the one table of tasks; and what it writes."""

import json
from functools import partial
from pathlib import Path

from jaxllm.prediction import predict as prediction
from jaxllm.prediction.loaded import LoadedModel
from jaxllm.tasks.registry import TASKS

predict = partial(prediction.predict, kinds=TASKS)
load_model = partial(LoadedModel.load, kinds=TASKS)


def read_lines(path):
    """The values of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
