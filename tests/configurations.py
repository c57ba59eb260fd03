"""A configuration with other fields, unchecked: tests make mistakes on purpose."""

from dataclasses import replace

from jaxllm.config.fields import Config


def change(config: Config, **sections) -> Config:
    """`config` with fields of sections set: change(config, data={"dev": []})."""
    parts = {name: replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return replace(config, **parts)
