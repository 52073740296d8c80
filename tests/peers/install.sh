#!/usr/bin/env bash
# Installs the foreign programs that the peer and store suites run, below
# target/peers.
set -euo pipefail
cd "$(dirname "$0")/../.."
peers="$PWD/target/peers"
for program in python3 tar gzip jq promtool node npm; do
  command -v "$program" >/dev/null || missing="${missing:-} $program"
done
if [ -n "${missing:-}" ]; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends \
    python3 python3-venv tar gzip jq prometheus nodejs npm
fi
[ -x "$peers/bin/python" ] || python3 -m venv "$peers"
"$peers/bin/pip" install --quiet --disable-pip-version-check -r tests/peers/requirements.txt
"$peers/bin/grpcurl" -version 2>&1 | head -n 1
# Azure's emulator, and an S3 server that ignores create-only.
npm install --silent --ignore-scripts --no-audit --no-fund --no-save \
  --prefix "$peers/node" azurite@3.35.0 s3rver@3.7.1
"$peers/bin/weed" version
