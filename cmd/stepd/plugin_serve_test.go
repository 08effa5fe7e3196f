package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// TestPluginServe hosts stepd the way a controller that knows go-plugin, and
// nothing of ours but proto/stepd/v1, would.
func TestPluginServe(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "stepd") // under this name the test binary is stepd
	if err := os.Link(self, program); err != nil {
		b, readErr := os.ReadFile(self)
		if err := errors.Join(readErr, os.WriteFile(program, b, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	_, err = io.Copy(h, content)
	if err := errors.Join(err, content.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "plugin", "serve", "--state-dir", t.TempDir())
	cmd.Env = []string{"HOME=" + t.TempDir()}
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  protocol.Handshake(),
		VersionedPlugins: map[int]goplugin.PluginSet{protocol.Version: {protocol.Steps: connection{}}},
		Cmd:              cmd,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		SecureConfig:     &goplugin.SecureConfig{Checksum: h.Sum(nil), Hash: sha256.New()},
		Logger:           hclog.NewNullLogger(),
	})
	defer client.Kill()
	p, err := client.Client()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := p.Dispense(protocol.Steps)
	if err != nil {
		t.Fatal(err)
	}
	regs, err := rpc.NewClient(raw.(*grpc.ClientConn), rpc.ClientOptions{}).Registrations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(regs) != 3 {
		t.Errorf("got %d steps, want stepd's own three", len(regs))
	}
	for _, reg := range regs {
		if reg.Name != "config-apply" {
			continue
		}
		work := t.TempDir()
		writeFile(t, filepath.Join(work, "in.yaml"), "a: 1 # one\n")
		r, err := reg.New(steps.Capabilities{}).Run(t.Context(), &steps.Context{
			WorkDir: work, Alias: "apply", Project: "acme", Promotion: "p",
			Config: map[string]any{"inPath": "in.yaml", "outPath": "out.yaml"},
		})
		if err != nil || r.Status != steps.Succeeded {
			t.Errorf("config-apply: %q, %v", r.Status, err)
		}
		if b, err := os.ReadFile(filepath.Join(work, "out.yaml")); err != nil || string(b) != "a: 1 # one\n" {
			t.Errorf("it wrote %q, %v", b, err)
		}
	}
}

// connection is a host's side that wants nothing but the connection.
type connection struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (connection) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return errors.ErrUnsupported }

func (connection) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}
