"""The model of a task with the adapters that its configuration asks for."""

from dataclasses import replace

from jaxllm.adapters import peft_format
from jaxllm.adapters.peft_format import PeftAdapter
from jaxllm.adapters.stored import LoraModel
from jaxllm.config.fields import Config
from jaxllm.data.label_cells import whole
from jaxllm.errors import InputError
from jaxllm.models import Compute
from jaxllm.pretrained.storage import OneModel, StoredModel

NAMED = ("sequence-classification", "token-classification")  # heads with a row for each label


def with_adapter(config: Config, model: StoredModel) -> tuple[StoredModel, PeftAdapter | None]:
    """(the model that takes its head from the adapter at model.adapter, that adapter).

    Raises:
        InputError: an adapter that is none, or of another base.
    """
    if config.model.adapter is None:
        return model, None
    one = _one("model.adapter", model)
    _, abstract = one.parts(Compute())
    adapter = peft_format.read(config.model.adapter, one.config, abstract, one.head)
    return replace(one, given=adapter.whole), adapter


def with_lora(config: Config, model: StoredModel, adapter: PeftAdapter | None) -> LoraModel | None:
    """The model whose adapters are trained, from `adapter` on; None where lora.rank is 0."""
    if config.lora.rank == 0:
        return None
    path = config.model.path
    assert path is not None
    return LoraModel(_one("lora.rank", model), config.lora, path, config.train.seed, adapter)


def check_label_order(config: Config, model: StoredModel, adapter: PeftAdapter | None) -> None:
    """An adapter's head does not say which label a row is for: InputError where the data's labels
    are names in an order that nobody told.
    """
    if adapter is None or model.head not in NAMED or config.data.told_labels is not None:
        return
    names = list(model.config.id2label.values())
    if adapter.whole and None in map(whole, names):
        raise InputError(
            f"data.labels: found null, but the head in {adapter.where} is for labels whose order "
            f"it does not tell; give {', '.join(names[:10])} in the order of its rows"
        )


def _one(key: str, model: StoredModel) -> OneModel:
    if not isinstance(model, OneModel):
        raise InputError(
            f"{key}: the pretraining of ELECTRA's two models has no adapters; expected another task"
        )
    return model
