"""The judge's own copy of an answer, begun inside the window, and what stands in an output before it."""

from __future__ import annotations

import secrets

import torch

#: Outputs up to this are copied whole inside the window (0.2 ms at 3 TB/s);
WHOLE_BYTES = 256 * 2**20
#: of larger ones random lines of this size in all.
FENCE_BYTES = 4 * 2**20
LINE_BYTES = 128


class Fence:
    """The judge's copy of a call's outputs, begun inside the window.

    Small outputs are copied whole before the clock stops. Of large ones random lines are, and the
    rest right after it: the copy then has to agree with those lines. Outputs are spoilt when the window
    opens, so an answer sent while a share f of the lines was missing passes with probability (1 - f) to
    the number of lines, which is above 32000.
    """

    def __init__(self, views: list[torch.Tensor], snapshots: list[torch.Tensor]) -> None:
        self.views = views
        self.snapshots = snapshots
        for index, view in enumerate(views):
            if index == len(snapshots) or (snapshots[index].shape, snapshots[index].stride()) != (
                view.shape,
                view.stride(),
            ):
                room = torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device=view.device)
                snapshots[index : index + 1] = [room]
        total = sum(v.numel() * v.element_size() for v in views)
        sampled = total > WHOLE_BYTES and all(v.is_contiguous() for v in views)
        self.step = -(-total // FENCE_BYTES) if sampled else 1
        self.lines = [_lines(v) for v in views] if self.step > 1 else []
        self.taken = [torch.empty_like(rows[:: self.step]) for rows in self.lines]
        self.offset = 0

    def spoil(self) -> None:
        """Overwrite the outputs with what nobody can foresee: one value, or integers at random."""
        value = secrets.randbelow(4000) / 1000 - 2
        for view in self.views:
            if view.is_floating_point():
                view.fill_(value)
            else:
                view.random_(0, 2)

    def close(self) -> None:
        """Enqueue what belongs inside the window."""
        if self.step > 1:
            self.offset = secrets.randbelow(self.step)
            for taken, rows in zip(self.taken, self.lines, strict=True):
                chosen = rows[self.offset :: self.step]
                taken[: len(chosen)].copy_(chosen)
        elif self.views:
            torch._foreach_copy_(self.snapshots[: len(self.views)], self.views)

    def holds(self) -> bool:
        """Complete the copy; whether it agrees with what was taken inside the window."""
        if self.step == 1:
            return True
        for index, (taken, rows, view) in enumerate(zip(self.taken, self.lines, self.views, strict=True)):
            if not self.snapshots[index].is_contiguous():  # a later fence is around another layout
                self.snapshots[index] = torch.empty_like(view)
            room = self.snapshots[index]
            room.copy_(view)
            chosen = _lines(room)[self.offset :: self.step]
            if len(rows) and not torch.equal(taken[: len(chosen)], chosen):
                return False
        return True


def _lines(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as lines of 128 bytes; a shorter rest at the end is left to the full copy."""
    flat = tensor.view(-1).view(torch.uint8)
    return flat[: len(flat) // LINE_BYTES * LINE_BYTES].view(-1, LINE_BYTES)
