"""What was found in the records of a data set, for a report."""

from dab_detr.errors import listed

MISSING = "images do not exist or cannot be opened, and are left out"
CLIPPED = "boxes reach outside their image and are clipped"
DROPPED = "boxes have no size, a negative one, or lie outside their image, and are dropped"
NOT_FINITE = "boxes are not finite numbers and are dropped"
AREA = "areas are no positive numbers; those of the boxes are used"
ROTATED = "rotated boxes are replaced by the upright ones around them"
WITHIN_ONE = "boxes lie within 0..1 pixels"
CROWDS = "crowd regions are not learnt from"
IGNORED = "crowd regions are neither objects nor false alarms of the evaluation"
EMPTY = "images have no boxes"


class Findings:
    """Examples by kind; as text, a line a kind with the count and a few of them."""

    def __init__(self):
        self._examples: dict[str, list[str]] = {}

    def note(self, kind: str, example: str) -> None:
        self._examples.setdefault(kind, []).append(example)

    def count(self, kind: str) -> int:
        return len(self._examples.get(kind, ()))

    def first(self, kind: str) -> str:
        return self._examples[kind][0]

    def extend(self, other: "Findings") -> None:
        for kind, examples in other._examples.items():
            self._examples.setdefault(kind, []).extend(examples)

    def __str__(self) -> str:
        return "\n".join(
            f"{len(examples)} {kind}: {listed(examples)}"
            for kind, examples in self._examples.items()
        )
