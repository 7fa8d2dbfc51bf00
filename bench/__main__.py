"""`python -m bench` in a checkout is `gpudarknet bench`."""

import sys

from gpudarknet.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
