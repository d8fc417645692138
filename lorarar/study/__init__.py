"""The human study: pairs of generated images are shown to raters, who say which is better; and what their votes say."""

from typing import Literal

Scenario = Literal["random", "best"]
"""Which image of a method stands for a pair: any, or one that the judge accepted."""
