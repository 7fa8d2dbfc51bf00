"""Entry point of `python -m gpudarknet`, the same as the command `gpudarknet`."""

import sys

from .cli import main

sys.exit(main())
