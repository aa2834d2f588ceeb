"""`python -m torpor`: the command line, where its script is not on the path."""

from torpor.cli import main

if __name__ == "__main__":
    main()
