module tools/tls-client

go 1.26.0
