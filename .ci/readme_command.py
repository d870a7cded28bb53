"""Print the fenced block of README.md that follows ``<!-- command: NAME -->``."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """``NAME [README]``; returns the exit code."""
    name = arguments[0]
    readme = Path(arguments[1]) if len(arguments) > 1 else Path(__file__).parents[1] / "README.md"
    mark = rf"<!-- command: {re.escape(name)} -->\s*\n```\w*\n(.*?)^```$"
    blocks = re.findall(mark, readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if len(blocks) != 1:
        print(f'{readme}: {len(blocks)} blocks behind "command: {name}", not 1', file=sys.stderr)
        return 2
    sys.stdout.write(blocks[0])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
