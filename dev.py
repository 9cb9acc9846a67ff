#!/usr/bin/env python3
"""Everything a contributor does, from a bare Python: `python3 dev.py --help` lists the commands."""

import sys

if sys.version_info < (3, 10):  # before anything newer is imported, so that an old Python says this and not a SyntaxError
    sys.exit(
        "dev.py needs Python 3.10 or newer, and this is Python %d.%d (%s). "
        "Install a newer Python and start dev.py with it, for example: python3.12 dev.py demo"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

if __name__ == "__main__":
    from devtools.cli import main

    sys.exit(main())
