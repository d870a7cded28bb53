"""``python -m engine.build``."""

from engine.build.pipeline import main

raise SystemExit(main())
