"""What a solution is compared with: the reference in one named configuration per file.

A baseline file has `HEADLINE` (may it be the headline's denominator), `COLUMN` (does it run in all rounds
though another leads), `DEFAULT` (does it run when none is named; a literal, since it is read without torch),
`LAYOUT`, `FLAGS` (attributes of `torch.backends.cudnn`, set in the baseline's own thread before its first
call, by attribute since `cudnn.flags(...)` would switch cuDNN off) and `wrap(model)`, which returns the
callable that is timed.

The runner sets the TF32 switches itself, for a baseline before each of its calls as for a solution before it
is built, and a baseline touches neither them nor a dtype. So where a solution may use TF32 the baselines
may, too, and where it may not they compute in IEEE fp32; cuDNN has no TF32 for some problems and is then
more precise. The headline, which a pilot chooses of its candidates, is of the cell's arithmetic or a more
precise one. A speed-up is over the headline or over `eager`, which runs in all rounds, too: the faster one.
"""
