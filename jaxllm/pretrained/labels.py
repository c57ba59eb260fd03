"""What a transformers config says of the labels of its head."""

from typing import Any

from jaxllm.errors import InputError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def problem_type(model_config: Any) -> str:
    """What the config says; else, as in transformers, regression for one label, one of several."""
    problem = model_config.problem_type
    problem = problem or ("regression" if model_config.num_labels == 1 else SINGLE)
    if problem == "regression" and model_config.num_labels != 1:
        raise InputError(f"regression with {model_config.num_labels} values, expected one")
    return problem


def label_names(model_config: Any) -> list[str]:
    """The names in the order of their ids; empty for regression."""
    if problem_type(model_config) == "regression":
        return []
    return [model_config.id2label[i] for i in range(model_config.num_labels)]
