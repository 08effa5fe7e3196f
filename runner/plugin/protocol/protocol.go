// Package protocol is what a plugin's host and its guest agree on beyond
// proto/stepd/v1: the go-plugin handshake, the names both sides use, and how a
// debugged plugin is reached. What either side does with it is not here.
package protocol

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const (
	// Version is the protocol's version. It changes when proto/stepd/v1 gives
	// way to another package, not when v1 grows.
	Version = 1
	// Steps names the one thing a plugin dispenses: a StepService.
	Steps = "steps"
	// NamePrefix is how the file name of every plugin begins.
	NamePrefix = "stepd-step-"
	// EnvWatchStdin tells a plugin to exit at the end of its standard input,
	// which its host holds open.
	EnvWatchStdin = "STEPD_PLUGIN_WATCH_STDIN"
	// EnvHostFile is the number of an open file that is a connection to the
	// host's HostService. With it the broker is not used.
	EnvHostFile = "STEPD_PLUGIN_HOST_FILE"
	// EnvDebug is set by a person and makes a plugin run on its own and print a line
	// for EnvReattach.
	EnvDebug = "STEPD_PLUGIN_DEBUG"
	// EnvReattach names plugins that run already, as JSON, for
	// `stepd run --debug-plugin`.
	EnvReattach = "STEPD_REATTACH_PLUGINS"
	// HostSocket is the metadata of a call to a debugged plugin that names the
	// unix socket of the caller's HostService. Over go-plugin its broker does that.
	HostSocket = "stepd-host-socket"
)

// Handshake is a check that a program is a stepd plugin and was started by a
// host. It is no secret and protects nothing.
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{
		ProtocolVersion:  Version,
		MagicCookieKey:   "STEPD_PLUGIN",
		MagicCookieValue: "9b1c6e0e4f1d5a36",
	}
}

// Reattach says where a plugin that runs already can be reached by plain gRPC.
type Reattach struct {
	Pid int `json:"pid"`
	// Network is "unix".
	Network string `json:"network"`
	Address string `json:"address"`
	// NoNetwork tells that the plugin was started without network, as in a dry
	// run.
	NoNetwork bool `json:"noNetwork,omitempty"`
}

// ReattachLine is the assignment of EnvReattach that a shell understands.
func ReattachLine(at map[string]Reattach) (string, error) {
	value, err := json.Marshal(at)
	if err != nil {
		return "", fmt.Errorf("cannot write %s: %w", EnvReattach, err)
	}
	return EnvReattach + "='" + strings.ReplaceAll(string(value), "'", `\u0027`) + "'", nil
}

// ParseReattach reads the value of EnvReattach; empty is none.
func ParseReattach(value string) (map[string]Reattach, error) {
	if value == "" {
		return nil, nil
	}
	var at map[string]Reattach
	if err := json.Unmarshal([]byte(value), &at); err != nil {
		return nil, fmt.Errorf("cannot read %s; `stepd run --debug-plugin`, or a plugin under %s, prints it: %w", EnvReattach, EnvDebug, err)
	}
	return at, nil
}

// DialHost connects to the HostService of whoever made the call of ctx.
func DialHost(ctx context.Context) (*grpc.ClientConn, error) {
	sockets := metadata.ValueFromIncomingContext(ctx, HostSocket)
	if len(sockets) != 1 || !filepath.IsAbs(sockets[0]) {
		return nil, errors.New("the caller does not say where its HostService is")
	}
	return grpc.NewClient("unix:"+sockets[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
}
