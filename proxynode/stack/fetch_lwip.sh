#!/bin/bash
# Puts the source of lwIP 2.1.3, from Debian's source package, into a cache directory and prints
# the path of its src/ folder. Does nothing when it is already there.
#
#   fetch_lwip.sh CACHE_DIR
#
# The system's apt configuration is read and left alone: a private sources list with deb-src
# entries for the machine's own Debian archives is handed to apt.
set -euo pipefail

readonly wanted_version='2.1.3'

die() {
  echo "fetch_lwip: $*" >&2
  exit 1
}

[[ $# -eq 1 ]] || die "usage: fetch_lwip.sh CACHE_DIR"
mkdir -p "$1"
cache=$(cd "$1" && pwd)

# Several build trees may be configured at once.
exec 9>"$cache/lock"
flock 9

found() {
  local file
  for file in "$cache"/source/lwip-"$wanted_version"*/src/core/tcp_in.c; do
    [[ -f "$file" ]] && [[ -f "$cache/complete" ]] || continue
    dirname "$(dirname "$file")"
    return 0
  done
  return 1
}

if found; then exit 0; fi

command -v apt-get >/dev/null || die "apt-get is needed to fetch Debian's lwip source package"
command -v dpkg-source >/dev/null || die "dpkg-source is missing: apt-get install dpkg-dev"

# Debian archives among the configured ones: those with a component called main.
list_sources() {
  local file
  for file in /etc/apt/sources.list.d/*.sources; do
    [[ -f "$file" ]] || continue
    awk -v RS='' '
      /(^|\n)Types:[^\n]*deb/ && /(^|\n)Components:[^\n]*main/ && !/(^|\n)Enabled:[ ]*no/ {
        n = split($0, line, "\n")
        for (i = 1; i <= n; i++) {
          if (line[i] ~ /^#/ || line[i] ~ /^Architectures:/) continue
          if (line[i] ~ /^Types:/) line[i] = "Types: deb-src"
          print line[i]
        }
        print ""
      }' "$file"
  done
}
list_one_line_sources() {
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ -f "$file" ]] || continue
    awk '$1 == "deb" && / main( |$)/ {
      sub(/^deb/, "deb-src")
      sub(/arch=[^] ]*/, "")
      sub(/\[ *\] */, "")
      print
    }' "$file"
  done
}

rm -rf "$cache/apt" "$cache/source" "$cache/complete"
mkdir -p "$cache/apt/parts" "$cache/apt/lists/partial" "$cache/source"
list_sources >"$cache/apt/parts/deb-src.sources"
list_one_line_sources >"$cache/apt/parts/deb-src.list"
if ! grep -q deb-src "$cache"/apt/parts/*; then
  die "no Debian archive is configured in /etc/apt"
fi

apt_options=(
  -o "Dir::Etc::sourcelist=/dev/null"
  -o "Dir::Etc::sourceparts=$cache/apt/parts"
  -o "Dir::State::Lists=$cache/apt/lists"
  -o "APT::Sandbox::User="
  -o "Acquire::Retries=3"
  -qq
)
log=$cache/apt/log
echo "fetch_lwip: fetching Debian's lwip source package" >&2
apt-get "${apt_options[@]}" update >"$log" 2>&1 ||
  { cat "$log" >&2; die "apt-get update failed"; }
version=$(apt-cache "${apt_options[@]}" showsrc lwip 2>>"$log" |
  awk -v wanted="$wanted_version" '/^Version:/ && index($2, wanted) == 1 { print $2; exit }')
[[ -n "$version" ]] || die "the configured archives have no lwip $wanted_version"
(cd "$cache/source" && apt-get "${apt_options[@]}" source "lwip=$version" >>"$log" 2>&1) ||
  { cat "$log" >&2; die "apt-get source lwip=$version failed"; }

touch "$cache/complete"
rm -rf "$cache/apt/lists" "$cache/source"/*.tar.* "$cache/source"/*.dsc
found || { rm -f "$cache/complete"; die "the lwip package has no src/core/tcp_in.c"; }
