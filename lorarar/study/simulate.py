"""A panel of simulated raters, to exercise the path from votes to tables where nobody was asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorarar.study.storage import Ballot, Storage
from lorarar.study.votes import Choice

CARELESS = 10
"""Every tenth rater answers without looking, for the checks to find."""


def panel(storage: Storage, truth: Sequence[tuple[float, float]], raters: int, seed: int) -> None:
    """Add simulated raters to a study and let each answer all comparisons, as the page would.

    A rater sees an image's true quality with noise of their own, says *Similar* within a threshold of their own, and
    leans a little towards one side.

    Parameters
    ----------
    truth : for each item of the study, the true qualities of its two images.
    raters : how many.
    seed : of all they do.
    """
    random = np.random.default_rng(seed)
    for number, rater in enumerate(storage.invite(raters, simulated=True), start=1):
        noise, threshold, lean = random.uniform(0.1, 0.4), random.uniform(0.3, 0.7), random.normal(0, 0.1)
        for position, slot in enumerate(storage.slots(rater)):
            left, right = reversed(truth[slot.item]) if slot.swapped else truth[slot.item]
            # Noise of two images; drawn in any case, so that one rater's answers do not move the next one's.
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
