"""``python -m deepspace`` is the command line."""

from deepspace.cli import main

main()
