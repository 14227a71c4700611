"""`python -m gradwell`."""

from gradwell.cli import main

main()
