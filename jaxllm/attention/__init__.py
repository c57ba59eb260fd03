"""Who sees whom, and what computes it: XLA, blocks on CPUs, Triton, cuDNN or splash."""
