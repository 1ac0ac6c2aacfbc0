#!/usr/bin/env bash
# Fetches what the GPU machine lacks into benchmarks/gpu/wheels: benchmarks/gpu/wheels.sh [peers] [fa3]
# Without words: what fewstep itself needs there. "peers": spconv-triton and jvp-flash-attention. "fa3": FlashAttention-3
# (28 MB, in parts of 12 MiB in benchmarks/gpu/fa3, since tree and wheels may be 64 MiB together in one call).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
fetch() { # folder, then requirements
  local folder=$1
  shift
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --abi cp312 --abi abi3 --abi none --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$folder" "$@"
}
here=benchmarks/gpu
fetch $here/wheels pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5 \
  typing-extensions==4.16.0 trimesh==5.2.0 plyfile==1.1.5
for word in "$@"; do
  case $word in
    peers) fetch $here/wheels spconv-triton==1.0.0 jvp-flash-attention==0.14.0 ;;
    fa3)
      mkdir -p $here/fa3
      fetch $here/fa3/whole fa3-fwd==0.0.3
      split -b 12m -d "$(ls $here/fa3/whole/*.whl)" $here/fa3/part-
      (cd $here/fa3/whole && ls ./*.whl) >$here/fa3/name
      rm -r $here/fa3/whole
      ;;
    *) echo "unknown word '$word': accepted are peers, fa3" >&2 && exit 2 ;;
  esac
done
du -sh $here/wheels $here/fa3 2>/dev/null || true
