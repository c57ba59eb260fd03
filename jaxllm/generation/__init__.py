"""Text out of models that write: prefill and decode over a static cache, samplers, beams; pure."""
