"""What each command does: options in, lines and tables out, an exit code back.

These modules and `runner.cli` are the only ones that print, and none loads torch. `runner.cli` imports the
one that it needs, so that `--help` pays for none.
"""
