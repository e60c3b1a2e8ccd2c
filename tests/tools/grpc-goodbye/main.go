// grpc-goodbye is grpc-go's interop service on a server that says goodbye: by GOAWAY to each connection that is
// older than -age, and to all of them, once what it had is answered, when it is told to end (SIGTERM).
// Each connection is a line `connection` on standard output, and each unary call a line `call ID`, with ID from the
// field `x-id`.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

type counted struct{ net.Listener }

func (c counted) Accept() (net.Conn, error) {
	connection, err := c.Listener.Accept()
	if err == nil {
		lines.Print("connection")
	}
	return connection, err
}

var lines = log.New(os.Stdout, "", 0)

func main() {
	listen := flag.String("listen", "", "address")
	age := flag.Duration("age", time.Hour, "how old a connection gets")
	takes := flag.Duration("takes", 0, "how long a call takes")
	flag.Parse()
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	count := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		incoming, _ := metadata.FromIncomingContext(ctx)
		lines.Print("call ", strings.Join(incoming.Get("x-id"), ","))
		time.Sleep(*takes)
		return next(ctx, req)
	}
	server := grpc.NewServer(
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: *age, MaxConnectionAgeGrace: time.Minute}),
		grpc.UnaryInterceptor(count),
	)
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		<-stop
		server.GracefulStop()
		close(ended)
	}()
	if err := server.Serve(counted{listener}); err != nil {
		log.Fatal(err)
	}
	<-ended
}
