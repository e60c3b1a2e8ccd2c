#!/bin/sh
# Makes a Python environment with what requirements.txt names, and generates the messages, when either is out of date.
set -eu
cd "$(dirname "$0")"
build=../../.outrigger/build/user-python
mkdir -p "$build/pb"
if ! cmp -s requirements.txt "$build/venv/installed"; then
    rm -rf "$build/venv"
    python3 -m venv "$build/venv"
    "$build/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$build/venv/installed"
    rm -f "$build/pb/user.proto"
fi
if ! cmp -s ../../proto/user.proto "$build/pb/user.proto"; then
    "$build/venv/bin/python" -m grpc_tools.protoc -I ../../proto \
        --python_out="$build/pb" --grpc_python_out="$build/pb" user.proto
    cp ../../proto/user.proto "$build/pb/user.proto"
fi
