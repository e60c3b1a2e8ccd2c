#!/bin/sh
# Builds the service; go itself knows what is up to date.
set -eu
cd "$(dirname "$0")"
go build -trimpath -o ../../.outrigger/build/post-go/post .
