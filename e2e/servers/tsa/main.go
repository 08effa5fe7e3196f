// Command tsa serves Sigstore's timestamp authority on 127.0.0.1 at the port
// given as the only argument, with a key and a certificate chain that it makes
// up. It exists because timestamp-server itself also insists on port 2112 for
// its metrics, so that two could not run on one machine.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/sigstore/timestamp-authority/v2/pkg/server"
	"github.com/spf13/viper"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: tsa PORT")
		os.Exit(2)
	}
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot read the port:", err)
		os.Exit(2)
	}
	// The defaults of timestamp-server's flags (cmd/timestamp-server/app/root.go).
	viper.Set("timestamp-signer", "memory")
	viper.Set("timestamp-signer-hash", "sha256")
	viper.Set("default-policy-oid", "1.3.6.1.4.1.57264.2")
	viper.Set("accepted-policy-oids", []string{"1.3.6.1.4.1.57264.2"})
	viper.Set("max-request-body-size", uint64(1<<20))
	s := server.NewRestAPIServer("127.0.0.1", port, []string{"http"}, false, 30*time.Second, 30*time.Second)
	if err := s.Serve(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot serve:", err)
		os.Exit(1)
	}
}
