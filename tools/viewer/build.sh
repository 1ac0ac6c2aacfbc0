#!/usr/bin/env bash
# Bundle the viewer of the report's page: viewer.js and what it needs of three.js, minified, with three's licence beside it.
# Needs node and npm; the result is committed, so that using and installing fewstep needs neither.
set -euo pipefail
cd "$(dirname "$0")"
out=../../fewstep/benchmark/page
npm ci --no-audit --no-fund
npx esbuild viewer.js --bundle --minify --format=iife --global-name=viewer --target=es2020 --charset=ascii \
  --legal-comments=none --banner:js="/* three.js, MIT licence, three.LICENSE.txt */" --outfile="$out/viewer.js"
cp node_modules/three/LICENSE "$out/three.LICENSE.txt"
