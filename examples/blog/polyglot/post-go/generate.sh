#!/bin/sh
# Generates pb/ from the .proto files. Needs protoc and its two Go plugins on the PATH:
#   pip install grpcio-tools        (then PROTOC="python3 -m grpc_tools.protoc")
#   go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
#   go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
set -eu
cd "$(dirname "$0")"
module=example.test/blog/post
for name in blog post; do
    ${PROTOC:-protoc} -I ../../proto \
        --go_out=. --go_opt=module=$module --go_opt=M$name.proto=$module/pb/$name \
        --go-grpc_out=. --go-grpc_opt=module=$module --go-grpc_opt=M$name.proto=$module/pb/$name \
        $name.proto
done
