"""Turn a folder of cubins from ``kernels.aot`` into one C file: ``embed.py FOLDER OUT.c``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kernels import tiles

_DTYPES = {"*fp16": "MVOS_FP16", "*fp32": "MVOS_FP32"}


def entry(metadata: dict[str, Any], image: str) -> str:
    """One row of ``mvos_kernels``."""
    capability = int(metadata["target"].removeprefix("sm_"))
    types = {p["name"]: p["type"] for p in metadata["parameters"]}
    constants = metadata["constants"]
    merge = metadata["op"] == "memory_read_merge"
    blocks = [constants.get(k, 0) for k in ("BLOCK_M", "BLOCK_N", "BLOCK_V")]
    if merge:
        blocks = [constants["BLOCK_R"], 0, constants["BLOCK_C"]]
    fields = [
        capability // 10,
        capability % 10,
        int(metadata["code_for"].endswith("a")),
        int(merge),
        _DTYPES[types["out"]],
        constants.get("CK", 0),
        constants["CV"],
        *blocks,
        metadata["resources"]["resident"],
        metadata["threads"],
        metadata["shared"],
        json.dumps(metadata["kernel"]),
        image,
    ]
    return "    {" + ", ".join(str(f) for f in fields) + "},"


def generate(folder: Path) -> str:
    """The C source for the memory reads in ``folder``."""
    rows: list[str] = []
    images: list[str] = []
    for file in sorted(folder.glob("memory_read*.json")):
        metadata = json.loads(file.read_text())
        name = f"image_{len(images)}"
        code = ",".join(str(b) for b in file.with_suffix(".cubin").read_bytes())
        # The driver reads an ELF image in place: keep it aligned.
        images.append(
            f"static const unsigned char {name}[] __attribute__((aligned(64))) = {{{code}}};"
        )
        rows.append(entry(metadata, name))
    if not rows:
        raise SystemExit(f"embed.py: no memory_read*.json in {folder}; run python -m kernels.aot")
    constants = {
        "mvos_split_limit": tiles.SPLIT_LIMIT,
        "mvos_alone": tiles.ALONE,
        "mvos_start": tiles.START,
        "mvos_merge_cost": tiles.MERGE,
        "mvos_kernel_count": len(rows),
    }
    return "\n".join(
        [
            "/* Written by kernels/native/embed.py. */",
            '#include "kernels.h"',
            '#include "mvos.h"',
            *images,
            "const mvos_kernel mvos_kernels[] = {",
            *rows,
            "};",
            f"void *mvos_loaded[{len(rows)}];",
            *(f"const int {name} = {value};" for name, value in constants.items()),
            "",
        ]
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(generate(Path(sys.argv[1])))
