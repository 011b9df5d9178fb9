"""`python -m msl` is the `msl` command."""

from msl.cli import main

if __name__ == "__main__":
    main()
