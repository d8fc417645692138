"""The human study: raters see pairs of generated images and say which is better; votes become tables."""

from typing import Literal

Scenario = Literal["random", "best"]
"""Choice of a method's image of a pair: any, or one that the judge accepted."""
