"""The human study: pairs of generated images are shown to raters, who say which is better; and what their votes say."""

from typing import Literal

Scenario = Literal["random", "best"]
"""Choice of a method's image for a pair: any, or one that the judge accepted."""
