"""``python -m engine.export``."""

from engine.export.step import main

raise SystemExit(main())
