"""`python -m lorarar.cli` is the command `lorarar`."""

from lorarar.cli import main

main()
