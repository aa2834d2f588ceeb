"""`python -m eventing.pump`: pumps without an ingress, beside a predictor."""

import sys

from eventing.broker.__main__ import main

if __name__ == "__main__":
    sys.exit(main(with_ingress=False))
