"""What a solution is compared with: the reference in one named configuration per file.

A baseline file has `HEADLINE` (may it be the headline's denominator), `LAYOUT`, `FLAGS` (attributes of
`torch.backends.cudnn`, set in the baseline's own thread before its first call, by attribute since
`cudnn.flags(...)` would switch cuDNN off) and `wrap(model)`, which returns the callable that is
timed. The runner sets the TF32 switches itself.
"""
