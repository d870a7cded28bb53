#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in one command and ten minutes at most:
#
#     bash bench/gpu.sh [FOLDER]      (default: build/gpu)
#
# What is installed, the build, validation of its bundles, the tests marked `gpu`, and a short
# benchmark. Each part's output goes to FOLDER; a part that fails does not stop the next.
# Needs: pip install -e '.[dev]', and a CUDA build of torch for the kernels' own tests.
set -u
cd "$(dirname "$0")/.." || exit 2
out=${1:-build/gpu}
mkdir -p "$out" || exit 2
python=${PYTHON:-python}
end=$((SECONDS + ${SECONDS_AT_MOST:-600}))
failed=0

part() { # name, seconds, command…
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    local left=$((end - began))
    [ "$seconds" -gt "$left" ] && seconds=$left
    if [ "$seconds" -le 0 ]; then
        echo "== $name: not run, the ten minutes are over"
        failed=1
        return
    fi
    echo "== $name: $*"
    timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
    local code=$?
    tail -n 12 "$out/$name.txt" | sed 's/^/   /'
    if [ "$code" -eq 0 ]; then
        echo "   passed in $((SECONDS - began)) s"
    else
        [ "$code" -eq 124 ] && echo "   stopped after $seconds s"
        echo "   FAILED with code $code; all of it is in $out/$name.txt"
        failed=1
    fi
}

if ! nvidia-smi >"$out/gpu.txt" 2>&1; then
    echo "error: no NVIDIA GPU or driver on this machine (nvidia-smi fails); nothing was run" >&2
    exit 2
fi
part info 30 "$python" -m engine info
part build 120 "$python" -m engine.build --fp16 --objects 1 2
for bundle in build/bundles/*-fp16-*/; do
    [ -f "$bundle/manifest.json" ] || continue
    part "validate-$(basename "$bundle")" 60 "$python" -m engine validate "$bundle" --frames 4
done
part tests 200 "$python" -m pytest -q -m gpu -ra tests bench
part bench 180 "$python" bench/run.py --quick --out "$out/bench"
if [ "$failed" -eq 0 ]; then echo "all passed"; else echo "some parts failed"; fi
exit "$failed"
