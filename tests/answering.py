"""`jaxllm predict` as the command calls it: with the one table of tasks."""

from functools import partial

from jaxllm.prediction import predict as prediction
from jaxllm.prediction.loaded import LoadedModel
from jaxllm.tasks.registry import TASKS

predict = partial(prediction.predict, kinds=TASKS)
load_model = partial(LoadedModel.load, kinds=TASKS)
