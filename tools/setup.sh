#!/usr/bin/env bash
# setup.sh EXTRAS: makes .venv in this tree and installs fewstep with these extras and pinned packages. What is there
# already stays; where nothing is lacking it ends at once.
# PYTHON names the interpreter (3.10 to 3.13), EXTRAS other extras than the argument, TORCH the torch requirement.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
EXTRAS=${EXTRAS:-${1:-trellis,bench}}
PIN=2.13.0

# The stamp lists the extras that are installed. It is of no use once the requirements change.
stamp=".venv/.fewstep-$(cat pyproject.toml constraints.txt tools/setup.sh | cksum | cut -d' ' -f1)"
installed=$(cat "$stamp" 2>/dev/null || true)
lacking=
for extra in ${EXTRAS//,/ }; do
  [[ ",$installed," == *",$extra,"* ]] || lacking+=",$extra"
done
[ -e "$stamp" ] && [ -z "$lacking" ] && exit 0

"$PYTHON" - <<'PY' || { echo "fewstep needs Python 3.10 to 3.13: set PYTHON=..." >&2; exit 2; }
import sys
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PY
[ -x .venv/bin/python ] || { echo "== making .venv with $("$PYTHON" --version)"; "$PYTHON" -m venv .venv; }
pip() { .venv/bin/python -m pip install --disable-pip-version-check "$@"; }

torch_is_there() { .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '$PIN')" 2>/dev/null; }
if ! torch_is_there; then
  if [ -n "${TORCH:-}" ]; then
    echo "== installing $TORCH"
    # shellcheck disable=SC2086
    pip $TORCH
  elif [ "$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null 2>&1; then
    echo "== installing torch $PIN (with CUDA several GB, else 0.2 GB to fetch)"
    pip "torch==$PIN"
  else
    echo "== installing torch $PIN for the CPU (0.2 GB to fetch)"
    # From where pip already looks, else from PyTorch's own index, else whatever build there is.
    pip "torch==$PIN+cpu" 2>/dev/null ||
      pip --index-url https://download.pytorch.org/whl/cpu "torch==$PIN" ||
      pip "torch==$PIN"
  fi
fi
extras=${installed:+$installed}$lacking
extras=${extras#,}
echo "== installing fewstep[$extras] with pinned packages"
pip "setuptools>=77" wheel
pip --constraint constraints.txt --no-build-isolation --editable ".[$extras]"
rm -rf fewstep.egg-info  # an older one would hide the entry points of the installed version
rm -f .venv/.fewstep-*
echo "$extras" >"$stamp"
echo "== .venv is ready: $(du -sh .venv | cut -f1), $SECONDS s.  To use the command here: source .venv/bin/activate"
