"""Pure training: the step, losses, objectives, optimizers."""
