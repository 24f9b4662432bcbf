#!/usr/bin/env bash
# Installs the wheel in fresh environments, of each Python that is here with the oldest and the newest JAX that it may
# have, and uses it as a new user does: the checks of versions, a short training by the command, the README's example.
#
#   .github/matrix.sh                      python3.11 to python3.14, those that are here
#   .github/matrix.sh python3.12 newest    one
#   .github/matrix.sh python3.12 nightly   against what JAX publishes every night, at $JAX_NIGHTLY_INDEX
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export JAXVAE_CACHE_DIR="$work/cache"

pythons=("${1:-}")
[ -n "${1:-}" ] || pythons=(python3.11 python3.12 python3.13 python3.14)
ages=("${2:-}")
[ -n "${2:-}" ] || ages=(oldest newest)

# The lower bounds of what pyproject.toml asks of everyone, as versions to pin; jaxlib comes with jax.
oldest() {
    "$1" - "$top/pyproject.toml" <<'PYTHON'
import re, sys, tomllib

for each in tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]:
    name, version = re.match(r"([\w-]+)>=([\d.]+)", each).groups()
    if name != "numpy" or sys.version_info < (3, 12):  # newer Pythons have no wheels of so old a NumPy
        print(f"{name}=={version}")
PYTHON
}

# The eight lines of the README, with a directory of their own.
example() {
    "$1" - "$top/README.md" <<'PYTHON'
import re, sys

text = open(sys.argv[1]).read()
[code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "data.from_arrays(" in block and "run.save(" in block]
print(code)
PYTHON
}

failed=0
for python in "${pythons[@]}"; do
    if ! "$python" --version > /dev/null 2>&1; then
        echo "== $python is not here"
        continue
    fi
    [ -d "$work/tools" ] || { "$python" -m venv "$work/tools" && "$work/tools/bin/pip" install --quiet build; }
    ls "$work"/dist/*.whl > /dev/null 2>&1 || "$work/tools/bin/python" -m build --outdir "$work/dist" "$top" > "$work/build.log" 2>&1
    wheel=$(ls "$work"/dist/*.whl)
    for age in "${ages[@]}"; do
        place="$work/$python-$age"
        echo "== $python, $age JAX"
        set +e # a subshell that is part of a condition would go on after a failure
        (
            set -euo pipefail
            "$python" -m venv "$place/venv"
            pip=("$place/venv/bin/pip" install --quiet)
            case "$age" in
                oldest)
                    oldest "$place/venv/bin/python" > "$place/pins.txt"
                    "${pip[@]}" -c "$place/pins.txt" "$wheel[all]"
                    ;;
                newest) "${pip[@]}" "$wheel[all]" ;;
                nightly)
                    "${pip[@]}" "$wheel[all]"
                    "${pip[@]}" --pre --upgrade jax jaxlib \
                        --extra-index-url "${JAX_NIGHTLY_INDEX:?the address of nightly wheels, which the documentation of JAX gives}"
                    ;;
            esac
            cd "$place"
            venv/bin/jaxvae doctor
            venv/bin/jaxvae train digits --epochs 1 --num-samples 2 --out digits
            example venv/bin/python > example.py
            venv/bin/python example.py
        )
        code=$?
        set -e
        [ "$code" = 0 ] && echo "== $python, $age JAX: works" || { echo "== $python, $age JAX: FAILS" && failed=1; }
    done
done
exit "$failed"
