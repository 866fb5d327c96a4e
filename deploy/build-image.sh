#!/bin/sh
# Builds the image with buildah, which needs no daemon: sh deploy/build-image.sh [NAME:TAG] [flags of buildah build]
# Where the Dockerfile's base can't be pulled, one is made as it is: Debian 12's packages by mmdebstrap, Node and npm from npm's registry.
# Needs root, and: apt-get install buildah git mmdebstrap npm. About five minutes. Behind a proxy with a CA of its own, npm is told of it
# by a mounted npmrc (cafile=/ca.pem) and the mounted CA: two --volume flags, which leave nothing in the image.
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' package.json)
name=latchkey:$version
case ${1:-} in '' | -*) ;; *) name=$1 && shift ;; esac

base=$(sed -n 's/^ARG BASE=//p' Dockerfile)
if ! buildah pull --quiet "docker.io/library/$base" >/dev/null 2>&1; then
  echo "$base can't be pulled: it is made." >&2
  major=$(echo "$base" | sed 's/^node:\([0-9]*\)-.*/\1/')
  suite=$(echo "$base" | sed 's/^node:[0-9]*-\([a-z]*\)-slim$/\1/')
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,libatomic1,libstdc++6 "$suite" "$root/base"
  npm install --silent --no-save --ignore-scripts --prefix "$root/node" "node-linux-$(node -p process.arch)@$major" npm@11
  install "$root"/node/node_modules/node-linux-*/bin/node "$root/base/usr/local/bin/node"
  mkdir -p "$root/base/usr/local/lib/node_modules"
  cp -r "$root/node/node_modules/npm" "$root/base/usr/local/lib/node_modules/npm"
  ln -s ../lib/node_modules/npm/bin/npm-cli.js "$root/base/usr/local/bin/npm"
  ln -s ../lib/node_modules/npm/bin/npx-cli.js "$root/base/usr/local/bin/npx"
  chroot "$root/base" useradd --uid 1000 --create-home --shell /bin/bash node
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$root/base" / >/dev/null
  buildah commit --quiet --rm "$container" "localhost/$base" >/dev/null
  base=localhost/$base
fi
buildah build --isolation chroot --layers=false --format docker --build-arg BASE="$base" --build-arg VERSION="$version" \
  --build-arg REVISION="$(git rev-parse HEAD)" --tag "$name" "$@" .
echo "$name"
