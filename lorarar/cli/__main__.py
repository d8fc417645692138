"""Makes `python -m lorarar.cli` run the command."""

from lorarar.cli import main

main()
