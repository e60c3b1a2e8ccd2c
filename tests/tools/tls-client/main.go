// Command tls-client makes two connections to ADDR with Go's crypto/tls and tells what it got, as JSON.
//
//	tls-client [-chain F -key F] -roots F [-alpn a,b] [-max 1.2] ADDR PATH
//
// The second connection offers whatever session the first one left. The server's chain is verified
// against the roots; its name is a SPIFFE id, which Go does not know, so the id is printed instead.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

type result struct {
	Error   string   `json:"error,omitempty"`
	Version string   `json:"version,omitempty"`
	Curve   string   `json:"curve,omitempty"`
	ALPN    string   `json:"alpn"`
	IDs     []string `json:"ids,omitempty"`
	Status  int      `json:"status,omitempty"`
	Body    string   `json:"body,omitempty"`
	Resumed bool     `json:"resumed"`
}

func once(config *tls.Config, addr, path string) (r result) {
	raw, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return result{Error: err.Error()}
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	conn := tls.Client(raw, config)
	if err := conn.Handshake(); err != nil {
		return result{Error: err.Error()}
	}
	state := conn.ConnectionState()
	r = result{Version: tls.VersionName(state.Version), Curve: state.CurveID.String(), ALPN: state.NegotiatedProtocol, Resumed: state.DidResume}
	for _, uri := range state.PeerCertificates[0].URIs {
		r.IDs = append(r.IDs, uri.String())
	}
	// TLS 1.3: a refused client certificate shows at the first read.
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: app\r\nConnection: close\r\nOutrigger-Caller: spiffe://test.local/ns/default/svc/forged\r\n\r\n", path)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		r.Error = err.Error()
	}
	r.Status, r.Body = response.StatusCode, string(body)
	return r
}

func main() {
	chain := flag.String("chain", "", "client certificate chain")
	key := flag.String("key", "", "its key")
	roots := flag.String("roots", "", "roots that the server must chain to")
	alpn := flag.String("alpn", "", "protocols to offer, comma separated")
	newest := flag.String("max", "1.3", "newest version to offer")
	flag.Parse()
	pem, err := os.ReadFile(*roots)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	config := &tls.Config{
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, certificate := range state.PeerCertificates[1:] {
				between.AddCert(certificate)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between})
			return err
		},
		ClientSessionCache: tls.NewLRUClientSessionCache(4),
		ServerName:         "app",
	}
	if *newest == "1.2" {
		config.MaxVersion = tls.VersionTLS12
	}
	if *alpn != "" {
		config.NextProtos = strings.Split(*alpn, ",")
	}
	if *chain != "" {
		pair, err := tls.LoadX509KeyPair(*chain, *key)
		if err != nil {
			panic(err)
		}
		// Whatever authorities the server names: a bad certificate must be refused by it, not kept back here.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	results := []result{once(config, flag.Arg(0), flag.Arg(1)), once(config, flag.Arg(0), flag.Arg(1))}
	json.NewEncoder(os.Stdout).Encode(results)
}
