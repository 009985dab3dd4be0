"""Where a parameter comes from: how its elements lie, then what they are, then what each of its blocks is.

An orthogonal or a sparse matrix has the spread of many random ones; what tells it is how its rows and columns lie to
each other. Those numbers, and those of blocks, can only be had where one process holds the whole tensor. Where they are
missing, nothing is taken for granted: the sums that are there rule out what they can, and ``untold`` says the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lightning_weightwatch.theory.catalogue import GAINS, STDS, candidates, orthogonal
from lightning_weightwatch.theory.fans import Place
from lightning_weightwatch.theory.recognition import Readout, Recognition, epsilon, fits, recognise, rounding_of_angles
from lightning_weightwatch.theory.schemes import Scheme, normal

_BY_STRUCTURE = ("orthogonal", "identity", "sparse")
_ALIKE = 1e-3  # by how much rounding to bfloat16 may move a sum of elements, as a share
_MANY = 4  # vectors, between which there are six angles
_CHANCE = 1e-8
_LIKELY = 0.9  # the confidence in what its sums show and its rows and columns could not confirm
_UNTOLD = "its rows were not compared, because no process holds all of it"
_UNTOLD_BLOCKS = "its rows and blocks were not compared, because no process holds all of it"
_MARTENS = "Martens, 2010; torch.nn.init.sparse_"
_EYE = "torch.nn.init.eye_ and dirac_"


def origin(place: Place, readout: Readout, blocks: Sequence[Readout] = ()) -> Recognition:
    """Name the scheme a parameter was drawn from.

    Args:
        place: Where it sits.
        readout: Its numbers as ``recognise`` takes them, ``zeros``, and where it is a matrix that is held as a whole
            what ``structure`` measures of it.
        blocks: The same of every matrix that is stacked in it; empty where they were not measured.

    Example:
        >>> from lightning_weightwatch.theory import Wiring
        >>> gates = Place("bias", (8,), "recurrent", wiring=Wiring(stacked=("input", "forget", "cell", "output")))
        >>> same = [{"count": 2, "mean": x, "std": 0, "min": x, "max": x, "zeros": 2 * (x == 0)} for x in (0, 1, 0, 0)]
        >>> whole = {"count": 8, "mean": 0.25, "std": 0.433, "min": 0, "max": 1, "zeros": 6}
        >>> str(origin(gates, whole, same))
        'zeros, forget ones'
    """
    parts = [origin(block, numbers) for block, numbers in zip(place.blocks, blocks, strict=False)]
    found = _by_structure(place, readout) or _by_numbers(place, readout)
    if parts and _is_less_than(found, parts):
        return _of_parts(place, _as_one(place, parts, blocks))
    return found if _was_whole(place, readout) else replace(found, untold=_untold(place, found))


def _is_less_than(whole: Recognition, parts: Sequence[Recognition]) -> bool:
    """Whether the blocks tell more: matrices at right angles within themselves are so together, if they are stacked."""
    if whole.scheme is None:
        return True
    if whole.scheme.family == "sparse":
        return any(part.scheme is not None and part.scheme.family == "constant" for part in parts)
    return whole.scheme.family not in ("constant", "identity") and all(_is_exact(part) for part in parts)


def _was_whole(place: Place, readout: Readout) -> bool:
    return "kurtosis_count" in readout or (len(place.shape) < 2 and not place.wiring.stacked)


def _untold(place: Place, found: Recognition) -> str:
    if found.scheme is None and place.wiring.stacked:
        return _UNTOLD_BLOCKS
    could_be_told_by_rows = found.scheme is None or found.scheme.family in ("normal", *_BY_STRUCTURE)
    return _UNTOLD if could_be_told_by_rows and len(place.shape) > 1 and place.layer_kind != "embedding" else ""


def _is_exact(part: Recognition) -> bool:
    return part.scheme is not None and part.scheme.family in ("constant", *_BY_STRUCTURE)


def _by_structure(place: Place, readout: Readout) -> Recognition | None:
    """Name what is told by how the elements lie, if it is that."""
    if len(place.shape) < 2 or readout["min"] == readout["max"] or place.layer_kind == "norm":
        return None
    for seen in (_as_identity(place, readout), _as_orthogonal(place, readout), _as_sparse(place, readout)):
        if seen is not None:
            return Recognition(seen, confidence=1.0 if _was_whole(place, readout) else _LIKELY)
    # Rows at right angles that are not of one length were not drawn one by one, whatever their elements look like.
    is_chance = min(_sides(place)) < _MANY
    return None if is_chance or not readout.get("cosine", math.nan) <= _limit(place, readout) else Recognition(None)


def _sides(place: Place) -> tuple[int, int]:
    return place.shape[0], math.prod(place.shape[1:])


def _limit(place: Place, readout: Readout) -> float:
    """Return what rounding may make of a cosine of 0."""
    return rounding_of_angles(max(_sides(place)), epsilon(readout))


def _as_identity(place: Place, readout: Readout) -> Scheme | None:
    """One number on the diagonal, in the middle of each kernel, or on that of each group; zeros elsewhere."""
    count, value = readout["count"], readout["max"]
    for groups, key in ((1, "diagonal"), (place.wiring.groups, "diagonal_of_groups")):
        ones = groups * min(place.shape[0] // groups, place.shape[1])
        sums = readout["mean"] * count, readout.get(key, ones * value)
        lies_there = all(math.isclose(total, ones * value, rel_tol=_ALIKE) for total in sums)
        if lies_there and readout["min"] == 0 and readout["zeros"] == count - ones:
            name = "identity" if len(place.shape) == 2 else "identity (dirac)"
            name += "" if value == 1 else f" times {value:.4g}"
            share = ones / count
            return Scheme(name, "identity", value * share, value * math.sqrt(share * (1 - share)), value, _EYE)
    return None


def _as_orthogonal(place: Place, readout: Readout) -> Scheme | None:
    """Rows, or columns where they are fewer, at right angles and of one length."""
    length, limit = readout.get("longest", math.nan), _limit(place, readout)
    if not (readout.get("cosine", math.nan) <= limit and readout["shortest"] >= length * (1 - limit) > 0):
        return None
    known = next((gain for gain in GAINS if math.isclose(gain, length, rel_tol=max(limit, 1e-4))), length)
    return orthogonal(place.shape, known)


def _as_sparse(place: Place, readout: Readout) -> Scheme | None:
    """As many exact zeros in every column, and a normal distribution elsewhere."""
    rows, columns = place.shape[0], place.shape[-1]
    of_each, left = divmod(round(readout["zeros"]), columns)
    fewest = 2 if place.layer_kind == "embedding" else 1  # one row of zeros is for padding
    if len(place.shape) != 2 or left or not fewest <= of_each < rows:
        return None
    if {readout.get("fewest_zeros", of_each), readout.get("most_zeros", of_each)} != {of_each}:
        return None
    if readout.get("most_zeros_in_row", 0) == columns and (of_each / rows) ** columns < _CHANCE:
        return None  # whole rows are zeros
    rest = _without_zeros(readout)
    known = [scheme for std in STDS if fits(rest, scheme := normal("", std, _MARTENS))]
    known = known or [normal("", rest["std"] or 1.0, _MARTENS)]
    drawn = min(known, key=lambda scheme: abs(scheme.std - rest["std"]))
    if not fits(rest, drawn):
        return None
    name = f"sparse ({of_each / rows:.0%} of each column zero, normal std {drawn.std:.3g})"
    return Scheme(name, "sparse", 0.0, drawn.std * math.sqrt(1 - of_each / rows), None, _MARTENS)


def _by_numbers(place: Place, readout: Readout) -> Recognition:
    """Name the distribution of what was drawn; the padding row of an embedding was not."""
    among = [s for s in candidates(place) if s.family != "orthogonal" or _may_be_orthogonal(place, readout)]
    is_padded = place.layer_kind == "embedding" and len(place.shape) == 2 and place.shape[0] > 1
    if not is_padded or round(readout["zeros"]) != place.shape[1] or readout["min"] == readout["max"]:
        return recognise(readout, among)
    found = recognise(_without_zeros(readout), among)
    named = [_with_padding(scheme, place.shape[0]) for scheme in (found.scheme, *found.alternatives) if scheme]
    return replace(found, scheme=named[0], alternatives=tuple(named[1:])) if named else found


def _with_padding(scheme: Scheme, rows: int) -> Scheme:
    return replace(scheme, name=f"{scheme.name}, a padding row", std=scheme.std * math.sqrt(1 - 1 / rows))


def _may_be_orthogonal(place: Place, readout: Readout) -> bool:
    """Whether nobody has looked, or there is but one row, of which only the length can be looked at."""
    return min(_sides(place)) == 1 or not _was_whole(place, readout)


def _without_zeros(readout: Readout) -> dict[str, float]:
    """Return the numbers of the elements that are not zero."""
    count = readout["count"] - readout["zeros"]
    share = count / readout["count"]
    mean = readout["mean"] / share
    square = (readout["std"] ** 2 + readout["mean"] ** 2) / share
    shape = {"kurtosis": readout["kurtosis"] * share, "kurtosis_count": count} if "kurtosis" in readout else {}
    return {**readout, "count": count, "mean": mean, "std": math.sqrt(max(square - mean**2, 0.0)), **shape}


def _as_one(place: Place, parts: Sequence[Recognition], blocks: Sequence[Readout]) -> list[Recognition]:
    """Recognise the blocks that were drawn by all their elements together, if they were drawn alike."""
    drawn = [numbers for part, numbers in zip(parts, blocks, strict=True) if not _is_exact(part)]
    together = _by_numbers(place.blocks[0], _pooled(drawn)) if len(drawn) > 1 else Recognition(None)
    return [part if _is_exact(part) or together.scheme is None else together for part in parts]


def _pooled(readouts: Sequence[Readout]) -> dict[str, float]:
    """Return the numbers of blocks of one size as those of one tensor."""
    found = {key: sum(numbers[key] for numbers in readouts) for key in ("count", "zeros")}
    mean = sum(numbers["mean"] for numbers in readouts) / len(readouts)
    squares = [numbers["std"] ** 2 + numbers["mean"] ** 2 for numbers in readouts]
    square = sum(squares) / len(squares)
    found |= {"mean": mean, "std": math.sqrt(max(square - mean**2, 0.0))}
    found |= {"min": min(numbers["min"] for numbers in readouts), "max": max(numbers["max"] for numbers in readouts)}
    if all("kurtosis" in numbers for numbers in readouts):
        fourth = sum(numbers["kurtosis"] * s**2 for numbers, s in zip(readouts, squares, strict=True)) / len(squares)
        found |= {"kurtosis": fourth / square**2, "kurtosis_count": found["count"]}
    return found


def _of_parts(place: Place, parts: Sequence[Recognition]) -> Recognition:
    """Name what each block is, the most frequent first and the others by the block's name."""
    schemes = [part.scheme for part in parts if part.scheme is not None]
    if len(schemes) < len(parts):
        return Recognition(None)
    most = Counter(scheme.name for scheme in schemes).most_common(1)[0][0]
    usual = next(part for part in parts if part.scheme and part.scheme.name == most)
    named = [_mixed(place, schemes, most, scheme) for scheme in (usual.scheme, *usual.alternatives) if scheme]
    return Recognition(named[0], tuple(named[1:]), min(part.confidence for part in parts))


def _mixed(place: Place, schemes: Sequence[Scheme], most: str, usual: Scheme) -> Scheme:
    """Return the schemes as one, with another one in the place of the most frequent."""
    each = [usual if scheme.name == most else scheme for scheme in schemes]
    others = [f"{name} {s.name}" for name, s in zip(place.wiring.stacked, each, strict=True) if s is not usual]
    per = "gate" if place.layer_kind == "recurrent" else "block"
    told = ", ".join([usual.name, *others]) if others else f"{usual.name}, per {per}"
    mean = sum(scheme.mean for scheme in each) / len(each)
    square = sum(scheme.std**2 + scheme.mean**2 for scheme in each) / len(each)
    return Scheme(told, "mixed", mean, math.sqrt(max(square - mean**2, 0.0)), None, usual.source)
