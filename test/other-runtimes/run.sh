#!/bin/sh
# `npm run other-runtimes [-- 22 26]`: unit tests, a smoke of the integration tests and the Connect conformance suite on the other Node releases
# that are supported, after a build. What tests start of the service runs on the same release as they do.
set -eu
cd "$(dirname "$0")/../.."
npm ci --prefix test/other-runtimes --no-audit --no-fund --silent
SMOKE="unary http1-connection http2-connection lifecycle health"
failed=
for release in ${*:-22 26}; do
  node=$(ls test/other-runtimes/node_modules/node-"$release"-*/bin/node)
  echo "-- Node $("$node" --version)"
  NODE_OPTIONS=--experimental-vm-modules "$node" node_modules/jest/bin/jest.js --ci test/unit $(printf 'test/integration/%s.test.ts ' $SMOKE) || failed=yes
  "$node" test/conformance/run.js || failed=yes
done
[ -z "$failed" ]
