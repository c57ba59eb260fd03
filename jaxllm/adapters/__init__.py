"""LoRA and its kin: what is trained beside a model that stays as it is, and how it is stored."""
