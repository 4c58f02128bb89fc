"""`python -m vdinterp` is the `vdinterp` command."""

from vdinterp.cli import main

if __name__ == "__main__":
    main()
