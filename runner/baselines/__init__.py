"""What a solution is compared with: the reference in one named configuration per file.

A baseline file has `HEADLINE` (may it be the headline's denominator), `configure()`, which sets
PyTorch's flags by attribute in the baseline's own thread before its first call, and `wrap(model)`,
which returns the callable that is timed. The runner sets the TF32 switches itself.
"""
