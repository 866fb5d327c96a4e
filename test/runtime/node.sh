#!/bin/sh
# `node` of this repository's npm scripts, of npx and of all they start: the Node that `npm ci` brought for this platform,
# else the machine's own where it is new enough. `--install`: makes it that where npm linked a build that can't run here.
# `--installed`: whether `npm ci` came to its end; says what to do where it did not.
self=$(readlink -f "$0")
modules=$(dirname "$self")/../../node_modules
if [ "$1" = --install ]; then
  if ! "$modules/.bin/node" --version >/dev/null 2>&1; then ln -sf ../../test/runtime/node.sh "$modules/.bin/node"; fi
  exit
fi
if [ "$1" = --installed ]; then
  if [ -f "$modules/.package-lock.json" ]; then exit; fi
  echo "Nothing is installed here yet: run npm ci first, and let it end." >&2
  exit 1
fi
for brought in "$modules"/node-linux-*/bin/node "$modules"/node-darwin-*/bin/node "$modules"/node-bin-darwin-*/bin/node; do
  # A build for another C library is there, but does not run.
  if "$brought" --version >/dev/null 2>&1; then exec "$brought" "$@"; fi
done
IFS=:
for directory in $PATH; do
  own=$directory/node
  if [ ! -x "$own" ] || [ "$(readlink -f "$own")" = "$self" ]; then continue; fi
  version=$("$own" --version 2>/dev/null) || continue
  case $version in
    v[0-9].* | v1[0-9].* | v2[01].* | v22.[0-9].* | v22.1[01].*) found=${found:-$version} ;;
    *) exec "$own" "$@" ;;
  esac
done
echo "Latchkey needs Node 22.12 or later, and npm has none for this platform ($(uname -sm)): ${found:+found $found alone; }install one from https://nodejs.org." >&2
exit 1
