"""The report on a data set: what was changed, left out, or may be a mistake."""

from dab_detr.errors import listed

MISSING = "images do not exist or cannot be opened, and are left out"
CLIPPED = "boxes extend beyond their image and are clipped"
DROPPED = "boxes have no size, a negative one, or are outside their image, and are dropped"
NOT_FINITE = "boxes are not finite numbers and are dropped"
AREA = "areas are not positive numbers; the areas of the boxes are used"
ROTATED = "rotated boxes are replaced by their axis-aligned bounding boxes"
WITHIN_ONE = "boxes are within 0..1 pixels"
CROWDS = "crowd regions are not used for training"
IGNORED = "crowd regions are ignored by the evaluation"
EMPTY = "images have no boxes"


class ValidationReport:
    """Collects examples by kind; its text has one line per kind, with the count and examples."""

    def __init__(self):
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        self._examples.setdefault(kind, []).append(example)

    def count(self, kind: str) -> int:
        return len(self._examples.get(kind, ()))

    def first(self, kind: str) -> str:
        return self._examples[kind][0]

    def extend(self, other: "ValidationReport") -> None:
        for kind, examples in other._examples.items():
            self._examples.setdefault(kind, []).extend(examples)

    def __str__(self) -> str:
        return "\n".join(
            f"{len(examples)} {kind}: {listed(examples)}"
            for kind, examples in self._examples.items()
        )
