"""Check params.yaml and the tables in data/ without running anything."""

from __future__ import annotations

from stages.context import Context
from stages.run import run


def main(context: Context) -> None:
    """Nothing is left to do: to load a context is to check all it is made of."""


if __name__ == "__main__":
    run(main)
