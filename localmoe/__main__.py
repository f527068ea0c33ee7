"""`python -m localmoe` is the command `localmoe`."""

from localmoe.cli.app import main

if __name__ == "__main__":
    main()
