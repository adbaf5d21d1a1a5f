"""Train, held-out and test that have no patient and no picture in common."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from envs.datasets.base import DatasetCard, ImageSet, Reject, SplitDataset
from rewards.duplicates import near_duplicates
from rewards.errors import InputError

SPLITS = ("train", "heldout", "test")

_DECLARED = {"": "", "validation": "heldout", "val": "heldout"} | {name: name for name in SPLITS}


def split(
    name: str,
    images: ImageSet,
    card: DatasetCard,
    *,
    train: int,
    heldout: int,
    test: int,
    seed: int,
    radius: float,
    rejects: Sequence[Reject] = (),
    declared: Sequence[str] | None = None,
) -> SplitDataset:
    """Draws three sets of images at random, in whole clusters.

    A cluster is what patients and near-duplicates tie together: a connected component of the graph that links images of
    one patient and images that `near_duplicates` pairs. No cluster is in two splits. Sizes are exact: of the cluster
    that would overfill a split only the first images are taken, and its others go unused. The result depends on the
    seed and on which images there are, not on their order.

    Args:
        name: The data set's name.
        images: Everything there is to draw from; ids are unique.
        card: Passed on.
        train: Images wanted, at least 1.
        heldout: Images wanted, at least 1.
        test: Images wanted, at least 0.
        seed: Of the draw, at least 0.
        radius: Of `near_duplicates`.
        rejects: Images left out before; passed on.
        declared: For each image the split its source puts it in (``train``, ``heldout``, ``validation``, ``val``,
            ``test``, or nothing: then it is not used). Each split is drawn from its own images only, and a cluster that
            near-duplicates stretch over two splits stays in the first: its images in the other become rejects.

    Raises:
        InputError: If a number is out of range, there are too few images, or ``declared`` has another word or puts one
            patient in two splits.
    """
    wanted = {"train": train, "heldout": heldout, "test": test}
    if min(train, heldout) < 1 or test < 0 or seed < 0:
        raise InputError(
            f"splits of {_sizes(wanted)} with seed={seed}", "train and heldout are 1 or more, test and seed 0 or more"
        )
    if len(set(images.ids)) != len(images):
        raise ValueError("ids are not unique")
    by_id = sorted(range(len(images)), key=images.ids.__getitem__)
    images = images.take(by_id)
    pairs = near_duplicates(images.images, radius)
    cluster = _clusters(images.groups, pairs)
    usable = np.arange(len(images))
    homes: dict[int, str] | None = None
    if declared is not None:
        home = _declared_homes([declared[row] for row in by_id], images.groups)
        homes = {}
        for place in SPLITS:
            for row in np.flatnonzero(home == place):
                homes.setdefault(int(cluster[row]), place)
        strays = [row for row in range(len(images)) if home[row] and home[row] != homes[int(cluster[row])]]
        reason = "declared as {}, but near-duplicates tie its patient to {}"
        rejects = [
            *rejects,
            *(Reject(images.ids[row], reason.format(home[row], homes[int(cluster[row])])) for row in strays),
        ]
        usable = np.flatnonzero((home != "") & ~np.isin(usable, strays))

    members: dict[int, list[int]] = {}
    for row in usable:
        members.setdefault(int(cluster[row]), []).append(int(row))
    drawn = _draw(members, wanted, homes, np.random.default_rng(seed))
    if drawn is None:
        there = (
            f"{len(usable)} images of {len({images.groups[row] for row in usable})} patients ({len(members)} clusters)"
        )
        if homes is not None:
            there += (
                f", declared as {_sizes({s: sum(len(members[c]) for c in members if homes[c] == s) for s in SPLITS})},"
            )
        raise InputError(
            f"{name} has {there} and cannot fill {_sizes(wanted)} without sharing a patient",
            "ask for fewer images or give more",
        )
    parts = {place: images.take(rows) for place, rows in drawn.items()}
    dataset = SplitDataset(
        name=name,
        card=card,
        **parts,
        split_sha256=_hash(parts),
        rejects=tuple(rejects),
        near_duplicates=tuple((images.ids[i], images.ids[j]) for i, j in pairs if images.groups[i] != images.groups[j]),
    )
    check_disjoint(dataset)
    return dataset


def check_disjoint(dataset: SplitDataset) -> None:
    """Refuses a data set in which one patient, or one near-duplicate pair, is in two splits.

    Raises:
        InputError: Naming the first patient or pair found.
    """
    parts = {place: getattr(dataset, place) for place in SPLITS}
    _refuse_shared_patient({place: part.groups for place, part in parts.items()})
    where = {image_id: place for place, part in parts.items() for image_id in part.ids}
    for one, other in dataset.near_duplicates:
        if one in where and other in where and where[one] != where[other]:
            raise InputError(
                f"{one} in {where[one]} and {other} in {where[other]} are near-duplicates", "put them in the same split"
            )


def _refuse_shared_patient(groups: Mapping[str, Collection[str]]) -> None:
    for one, other in itertools.combinations(groups, 2):
        if shared := sorted(set(groups[one]) & set(groups[other])):
            raise InputError(f"patient {shared[0]} is in the splits {one} and {other}", "put each patient in one split")


def _declared_homes(declared: Sequence[str], groups: Sequence[str]) -> NDArray[np.str_]:
    """The split's name for each image, empty where none is declared."""
    words = [word.strip().lower() for word in declared]
    if unknown := sorted(set(words) - set(_DECLARED)):
        raise InputError(f"the source declares a split {unknown[0]!r}", f"name it {', '.join(SPLITS)} or validation")
    homes = [_DECLARED[word] for word in words]
    if not any(homes):
        raise InputError(
            "use_split is set and the source declares no split", "give it a column `split`, or unset use_split"
        )
    _refuse_shared_patient({s: [g for g, home in zip(groups, homes, strict=True) if home == s] for s in SPLITS})
    return np.array(homes)


def _clusters(groups: Sequence[str], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each image, equal for images that a chain of patients and pairs connects."""
    names, group = np.unique(np.array(groups), return_inverse=True)
    links = coo_array((np.ones(len(pairs)), (group[pairs[:, 0]], group[pairs[:, 1]])), shape=(len(names), len(names)))
    _, component = connected_components(links, directed=False)
    return np.asarray(component[group], dtype=np.int64)


def _draw(
    members: Mapping[int, Sequence[int]],
    wanted: Mapping[str, int],
    homes: Mapping[int, str] | None,
    rng: np.random.Generator,
) -> dict[str, list[int]] | None:
    """Rows for each split, or None if the clusters do not suffice.

    Clusters come in random order and fill one split after the other. If that wastes too much of the clusters cut short,
    the largest go first, each to the split that lacks most.
    """
    clusters = sorted(members)
    order = [clusters[i] for i in rng.permutation(len(clusters))]

    def fill(sequence: Sequence[int], *, greedy: bool) -> dict[str, list[int]] | None:
        taken: dict[int, str] = {}
        missing = dict(wanted)
        for c in sequence:
            allowed = [s for s in SPLITS if missing[s] > 0 and (homes is None or homes[c] == s)]
            if allowed:
                place = max(allowed, key=missing.__getitem__) if greedy else allowed[0]
                taken[c] = place
                missing[place] -= len(members[c])
        if max(missing.values()) > 0:
            return None
        return {s: [row for c in order if taken.get(c) == s for row in members[c]][: wanted[s]] for s in SPLITS}

    return fill(order, greedy=False) or fill(sorted(order, key=lambda c: -len(members[c])), greedy=True)


def _hash(parts: Mapping[str, ImageSet]) -> str:
    """SHA-256 over the images, captions and ids of each split, order included."""
    digest = hashlib.sha256()
    for place, part in parts.items():
        digest.update(json.dumps([place, part.images.shape, part.ids, part.captions]).encode())
        digest.update(np.ascontiguousarray(part.images).tobytes())
    return digest.hexdigest()


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{place}={size}" for place, size in sizes.items())
