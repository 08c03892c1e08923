"""`python -m loop_singular_bit` is the `lsb` command."""

from loop_singular_bit.cli import main

if __name__ == "__main__":
    main()
