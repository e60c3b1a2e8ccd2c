// post: what is written in the blogs, newest first. The same service as src/bin/blog-post.rs, in Go with grpc-go.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	blogpb "example.test/blog/post/pb/blog"
	postpb "example.test/blog/post/pb/post"
)

// How long calls in flight may go on after SIGTERM.
const grace = 5 * time.Second

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	if err := run(); err != nil {
		log.Fatalf("post: %v", err)
	}
}

func run() error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()

	blogAddress, err := variable("BLOG_ADDR")
	if err != nil {
		return err
	}
	port, err := variable("PORT")
	if err != nil {
		return err
	}
	host := os.Getenv("HOST")
	if host == "" {
		host = "127.0.0.1"
	}

	store, err := openStore()
	if err != nil {
		return err
	}
	defer store.Close()
	connection, err := grpc.NewClient(blogAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	log.Printf("listening on %s", listener.Addr())

	server := grpc.NewServer()
	postpb.RegisterPostServer(server, &posts{store: store, blogs: blogpb.NewBlogClient(connection)})
	healthy := health.NewServer()
	healthy.SetServingStatus(postpb.Post_ServiceDesc.ServiceName, grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(server, healthy)
	reflection.Register(server)

	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	log.Print("stopping")
	healthy.Shutdown()
	// A client may keep a stream open for ever (health's Watch does), so the wait has an end.
	late := time.AfterFunc(grace, server.Stop)
	defer late.Stop()
	server.GracefulStop()
	return nil
}

func variable(name string) (string, error) {
	value := os.Getenv(name)
	if value == "" {
		return "", fmt.Errorf("%s is not set", name)
	}
	return value, nil
}
