"""Train, fine-tune, evaluate and run Transformer language models in JAX and Flax."""

from typing import TYPE_CHECKING

from jaxllm.runtime import cpu_guard

if TYPE_CHECKING:
    from jaxllm.api import evaluate as evaluate
    from jaxllm.api import load as load
    from jaxllm.api import train as train
    from jaxllm.auto import AutoModel as AutoModel
    from jaxllm.auto import AutoModelForCausalLM as AutoModelForCausalLM
    from jaxllm.auto import AutoModelForMaskedLM as AutoModelForMaskedLM
    from jaxllm.auto import AutoModelForMultipleChoice as AutoModelForMultipleChoice
    from jaxllm.auto import AutoModelForNextSentencePrediction as AutoModelForNextSentencePrediction
    from jaxllm.auto import AutoModelForPreTraining as AutoModelForPreTraining
    from jaxllm.auto import AutoModelForQuestionAnswering as AutoModelForQuestionAnswering
    from jaxllm.auto import AutoModelForSequenceClassification as AutoModelForSequenceClassification
    from jaxllm.auto import AutoModelForTokenClassification as AutoModelForTokenClassification

__version__ = "0.1.0"
__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "__version__",
    "evaluate",
    "load",
    "train",
]

cpu_guard.apply()
cpu_guard.announce()


def __getattr__(name: str) -> object:
    """What needs jax, flax and transformers is imported on first use."""
    if name.startswith("Auto") and name in __all__:
        from jaxllm import auto

        return getattr(auto, name)
    if name in __all__:
        from jaxllm import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
