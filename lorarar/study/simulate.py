"""A panel of simulated raters, which tests the path from votes to tables if nobody was asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorarar.study.storage import Ballot, Storage
from lorarar.study.votes import Choice

CARELESS = 10
"""Every tenth rater answers at random, and the checks have to find these raters."""


def panel(storage: Storage, truth: Sequence[tuple[float, float]], raters: int, seed: int) -> None:
    """Add simulated raters to a study and let each answer all comparisons, as the page does.

    Each rater has a level of noise on the true quality of images, a threshold below which images are *Similar*, and a
    small preference for one side.

    Parameters
    ----------
    truth : the true qualities of the two images of each item.
    raters : number of raters.
    seed : for all random choices.
    """
    random = np.random.default_rng(seed)
    for number, rater in enumerate(storage.invite(raters, simulated=True), start=1):
        noise, threshold, lean = random.uniform(0.1, 0.4), random.uniform(0.3, 0.7), random.normal(0, 0.1)
        for position, slot in enumerate(storage.slots(rater)):
            left, right = reversed(truth[slot.item]) if slot.swapped else truth[slot.item]
            # Noise of two images; careless raters draw it too, so that the next rater's numbers stay the same.
            seen = left - right + lean + random.normal(0, noise * 2**0.5)
            careless: Choice = ("1", "similar", "2")[random.integers(3)]
            careful: Choice = "similar" if abs(seen) < threshold else "1" if seen > 0 else "2"
            ballot = Ballot(
                id=random.bytes(16).hex(),
                position=position,
                revision=0,
                choice=careless if number % CARELESS == 0 else careful,
                seconds=round(float(random.lognormal(1.5, 0.5)), 3),
            )
            storage.vote(rater.token, ballot)
        storage.finish(rater.token)
