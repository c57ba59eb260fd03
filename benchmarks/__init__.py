"""Measurements of jaxllm beside a baseline: ``python -m benchmarks.finetune --help``."""
