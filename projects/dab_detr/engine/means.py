"""Means of metrics over the steps between two log lines."""

import torch
from detectron2.utils import comm
from torch import Tensor


class StepMeans:
    """Means over the steps since the last :meth:`read`, and over all processes.

    The sums are kept on the device, so that :meth:`add` does not wait for it. Values that are not
    finite, such as the norm of a gradient that has overflowed float16, are left out.
    """

    def __init__(self):
        # sums and counts, (2, number of names), by the names that were added together
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of a step; on all processes, with the same names.

        Args:
            values: scalars on one device.
        """
        measured = torch.stack([value.detach().float() for value in values.values()])
        is_finite = measured.isfinite()
        sums = torch.stack((measured.where(is_finite, 0.0), is_finite.float()))
        if comm.get_world_size() > 1:
            # now rather than when logging, so that any process can save the sums of all
            torch.distributed.all_reduce(sums)
        names = tuple(values)
        if names in self._sums:
            sums += self._sums[names].to(sums.device)
        self._sums[names] = sums

    def read(self) -> dict[str, float]:
        """The means by name, without names that have no finite value. Resets the sums."""
        totals: dict[str, tuple[float, float]] = {}
        for names, sums in self._sums.items():
            for name, total, count in zip(names, *sums.tolist()):
                before = totals.get(name, (0.0, 0.0))
                totals[name] = before[0] + total, before[1] + count
        self._sums = {}
        return {name: total / count for name, (total, count) in totals.items() if count}

    def state_dict(self) -> dict:
        return {"sums": [(list(names), sums) for names, sums in self._sums.items()]}

    def load_state_dict(self, state: dict) -> None:
        self._sums = {tuple(names): sums for names, sums in state["sums"]}
