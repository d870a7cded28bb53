"""Launch every kernel through the real cuda.bindings against the stand-in driver.

check_python.py FAKE_LIBCUDA CUBINS, with the stand-in's folder in LD_LIBRARY_PATH. Exits with 77,
which CTest takes for "skipped", where cuda-python is not installed.
"""

from __future__ import annotations

import ctypes as c
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from check_launches import Launch, value

from kernels import launch


def main(fake_library: str, folder: Path) -> int:
    fake = c.CDLL(fake_library)
    try:
        from cuda.bindings import driver
    except ImportError:
        print("SKIPPED: cuda-python is not installed")
        return 77
    assert driver.cuInit(0)[0] == 0
    assert value(fake, "fake_inits").value == 1, "cuda.bindings found another libcuda"

    files = sorted(folder.glob("*.json"))
    assert files
    for number, file in enumerate(files):
        m = json.loads(file.read_text())
        names = [p["name"] for p in m["parameters"] if p["type"] != "null pointer"]
        kinds = {p["name"]: p["type"] for p in m["parameters"]}
        # Addresses beyond 32 bits, and numbers that all differ.
        values = {
            n: 7 * i + 5 if kinds[n] == "i32" else 0x7F_1234_5600 + 256 * i
            for i, n in enumerate(names)
        }
        layout = "".join("i" if p["type"] == "i32" else "p" for p in m["parameters"])
        for field in ("fake_layout_read", "fake_layout_merge"):
            value(fake, field, c.c_char * 32).value = layout.encode()
        kernel = launch.load(folder, m["name"], divmod(int(m["target"][3:]), 10))
        kernel(0xABC0, **values)

        record = (Launch * 8).in_dll(fake, "fake_launches")[number % 8]
        assert value(fake, "fake_launch_count").value == number + 1
        assert record.kernel.decode() == m["kernel"]
        cubin = file.with_suffix(".cubin").read_bytes()
        assert c.string_at(record.image, len(cubin)) == cubin
        assert tuple(record.grid) == launch.grid(m["grid"], values)
        assert list(record.block) == [m["threads"], 1, 1]
        assert record.shared == m["shared"]
        assert record.stream == 0xABC0
        if m["shared"] > 48 * 1024:
            assert value(fake, "fake_attribute_value").value == m["shared"]
        wanted = list(values.values()) + [0] * (len(layout) - len(values))
        assert list(record.values[: record.parameters]) == wanted

    for wrong in ({}, values | {"more": 1}):
        try:
            kernel(0, **wrong)
        except TypeError as error:
            assert m["name"] in str(error)
        else:
            raise AssertionError("wrong arguments were taken")
    value(fake, "fake_failing", c.c_char * 64).value = b"cuLaunchKernel"
    try:
        kernel(0, **values)
    except RuntimeError as error:
        assert "CUDA_ERROR_LAUNCH_FAILED" in str(error)
    else:
        raise AssertionError("the driver's error was lost")
    print(f"{len(files)} kernels launched and checked")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
