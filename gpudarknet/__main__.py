"""`python -m gpudarknet` is the command `gpudarknet`."""

import sys

from .cli import main

sys.exit(main())
