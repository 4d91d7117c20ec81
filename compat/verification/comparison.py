"""Compares runs of both Trainers: pure functions on what was recorded."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from compat.verification.quantities import ORDER, QUANTITIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeAlias

    from compat.verification.records import Key, Run

    Values: TypeAlias = Mapping[Key, Any]

FACTOR: Final = 4
"""How far compat may be from the nearest run of HF's, in multiples of the largest distance between those."""

MISSING: Final = "<missing>"
"""The value of a key that a run does not have."""


@dataclass(frozen=True)
class Difference:
    """One value that differs.

    Attributes:
        key: which one.
        theirs: of HF's Trainer.
        ours: of compat's.
        amount: the absolute difference; infinite where it has no meaning.
    """

    key: Key
    theirs: Any
    ours: Any
    amount: float


@dataclass(frozen=True)
class Row:
    """One quantity in the table.

    Attributes:
        key: of the quantity.
        title: of the quantity.
        compared: number of values that were compared.
        spread: the largest difference between runs of HF's Trainer; None if it has run once.
        amount: the largest difference between compat and the run of HF's that is nearest.
        differs: number of values that differ by more than the spread allows.
    """

    key: str
    title: str
    compared: int
    spread: float | None
    amount: float
    differs: int

    @property
    def verdict(self) -> str:
        """One of the values of `MEANINGS`, or nothing where there was nothing to compare."""
        if not self.compared:
            return ""
        if self.differs:
            return "differs"
        if self.spread == math.inf:
            return "not comparable"
        return "within spread" if self.amount else "equal"


MEANINGS: Final = {
    "equal": "the same to the bit",
    "within spread": f"differs by at most {FACTOR} times as much as two runs of HF's Trainer",
    "not comparable": "HF's Trainer itself gives values of another kind or number in each run",
    "differs": "compat differs from HF's Trainer",
}


@dataclass(frozen=True)
class Comparison:
    """The result.

    Attributes:
        rows: a row for each quantity, in the order of the table of quantities.
        differences: the values that differ, the first ones first.
    """

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]

    @property
    def first(self) -> Difference | None:
        """The first difference: of the earliest step, and within it by the order of quantities."""
        return self.differences[0] if self.differences else None

    @property
    def has_spread(self) -> bool:
        """Whether HF's Trainer differs from itself."""
        return any(row.spread for row in self.rows)

    @property
    def is_exact(self) -> bool:
        """Whether everything is the same to the bit."""
        return all(row.verdict in {"", "equal"} for row in self.rows)


def compare(theirs: Sequence[Run], ours: Sequence[Run]) -> Comparison:
    """Compare each run of compat with the runs of HF's Trainer.

    Args:
        theirs: runs of HF's Trainer, one or more. Several show by how much it differs from itself.
        ours: runs of compat's.
    """
    first, *others = [run.values for run in theirs]
    pairs = itertools.combinations((first, *others), 2)
    spread = _largest(difference for one, other in pairs for difference in _differences(one, other))
    nearest: dict[Key, Difference] = {}
    for run in ours:
        candidates: dict[Key, Difference] = {}
        for place, values in enumerate((first, *others)):
            found = {difference.key: difference for difference in _differences(values, run.values)}
            candidates = found if place == 0 else _nearer(candidates, found)
        for key, difference in candidates.items():
            if key not in nearest or difference.amount > nearest[key].amount:
                nearest[key] = difference
    # An infinite spread allows everything: such values have nothing that could be held to them.
    exceeding = [
        difference
        for difference in nearest.values()
        if difference.amount > FACTOR * spread.get(difference.key.quantity, 0.0)
    ]
    exceeding.sort(key=lambda difference: place_of(difference.key))
    keys = [key for key in first if key.quantity in ORDER]
    amounts = _largest(nearest.values())
    rows = tuple(
        Row(
            quantity.key,
            quantity.title,
            compared=sum(key.quantity == quantity.key for key in keys),
            spread=spread.get(quantity.key, 0.0) if others else None,
            amount=amounts.get(quantity.key, 0.0),
            differs=sum(difference.key.quantity == quantity.key for difference in exceeding),
        )
        for quantity in QUANTITIES
    )
    return Comparison(rows, tuple(exceeding))


def place_of(key: Key) -> tuple[int, float, int]:
    """Return what differences are sorted by; those of the end of a training come after its steps."""
    return key.train, math.inf if key.step is None else key.step, ORDER[key.quantity]


def _nearer(one: dict[Key, Difference], other: dict[Key, Difference]) -> dict[Key, Difference]:
    """Return the smaller of two differences from the same value; none where one of them is none."""
    return {key: min(one[key], other[key], key=lambda each: each.amount) for key in one if key in other}


def _largest(differences: Iterable[Difference]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for difference in differences:
        quantity = difference.key.quantity
        largest[quantity] = max(largest.get(quantity, 0.0), difference.amount)
    return largest


def _differences(theirs: Values, ours: Values) -> Iterable[Difference]:
    for key in (*theirs, *(key for key in ours if key not in theirs)):
        left, right = theirs.get(key, MISSING), ours.get(key, MISSING)
        amount = distance(left, right)
        if amount:
            yield Difference(key, left, right, amount)


def distance(left: object, right: object) -> float:
    """Return by how much two recorded values differ: 0 if they are the same to the bit.

    Args:
        left: a number, a text, None, a digest of an array, or another plain value.
        right: likewise.
    """
    # Equal texts are equal bits: NaN equals NaN, and minus zero differs from zero.
    if repr(left) == repr(right):
        return 0.0
    if isinstance(left, dict) and isinstance(right, dict) and "sha256" in left and "sha256" in right:
        return _distance_of_arrays(left, right)
    if _is_number(left) and _is_number(right):
        return _gap(left, right)
    return math.inf


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _gap(left: Any, right: Any) -> float:
    if math.isnan(left) or math.isnan(right):
        return 0.0 if math.isnan(left) and math.isnan(right) else math.inf
    # The smallest number where the bits differ and the values do not: 0 and -0, 1 and 1.0.
    return abs(float(left) - float(right)) or math.ulp(0.0)


def _distance_of_arrays(left: dict[str, Any], right: dict[str, Any]) -> float:
    if left["sha256"] == right["sha256"] and left["shape"] == right["shape"]:
        return math.inf if left["dtype"] != right["dtype"] else 0.0
    if left["dtype"] != right["dtype"] or left["shape"] != right["shape"]:
        return math.inf
    pairs = zip(_flat(left["sample"]), _flat(right["sample"]), strict=True)
    # Where no value of the sample differs, another one does.
    return max((_gap(one, other) for one, other in pairs if one != other), default=math.ulp(0.0))


def _flat(sample: list[Any]) -> list[Any]:
    return [value for entry in sample for value in (entry if isinstance(entry, list) else [entry])]
