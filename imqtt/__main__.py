"""`python -m imqtt` runs `imqtt`."""

import sys

from imqtt.cli import main

if __name__ == "__main__":
    sys.exit(main())
