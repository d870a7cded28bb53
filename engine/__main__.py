"""``python -m engine``."""

import sys

if __name__ == "__main__":
    try:
        from engine.cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # before the command has begun
        sys.exit(130)
