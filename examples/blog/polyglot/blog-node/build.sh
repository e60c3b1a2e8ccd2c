#!/bin/sh
# Installs what package-lock.json names, when it is not installed yet.
set -eu
cd "$(dirname "$0")"
if ! cmp -s package-lock.json node_modules/.installed; then
    npm ci --omit=dev
    cp package-lock.json node_modules/.installed
fi
