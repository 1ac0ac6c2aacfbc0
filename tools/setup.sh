#!/usr/bin/env bash
# Makes .venv in this tree and installs fewstep with pinned packages. Does nothing when that is already done.
# PYTHON names the interpreter (3.10 to 3.13), EXTRAS the optional parts (default: what make demo and
# make test need), TORCH the torch requirement.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
EXTRAS=${EXTRAS:-dev,trellis,bench}
PIN=2.13.0

"$PYTHON" - <<'PY' || { echo "fewstep needs Python 3.10 to 3.13: set PYTHON=..." >&2; exit 2; }
import sys
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PY
stamp=".venv/.fewstep-$(cat pyproject.toml constraints.txt tools/setup.sh | cksum | cut -d' ' -f1)-$EXTRAS"
[ -e "$stamp" ] && exit 0
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)

torch_is_there() { .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '$PIN')" 2>/dev/null; }
if ! torch_is_there; then
  echo "installing torch $PIN (first time only)"
  if [ -n "${TORCH:-}" ]; then
    # shellcheck disable=SC2086
    "${pip[@]}" $TORCH
  elif [ "$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null 2>&1; then
    "${pip[@]}" "torch==$PIN"
  else
    # No GPU: the CPU build, from where pip already looks, else from PyTorch's own index, else whatever there is.
    "${pip[@]}" "torch==$PIN+cpu" 2>/dev/null ||
      "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "torch==$PIN" ||
      "${pip[@]}" "torch==$PIN"
  fi
fi
echo "installing fewstep[$EXTRAS] with pinned packages"
"${pip[@]}" "setuptools>=77" wheel
"${pip[@]}" --constraint constraints.txt --no-build-isolation --editable ".[$EXTRAS]"
rm -rf fewstep.egg-info  # an older one would hide the entry points of the installed version
rm -f .venv/.fewstep-*
touch "$stamp"
