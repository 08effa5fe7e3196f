// Package protocol is what a plugin's host and its guest agree on beyond
// proto/stepd/v1: the go-plugin handshake and the names both sides use. It has
// no behaviour of its own.
package protocol

import (
	"encoding/json"
	"fmt"

	goplugin "github.com/hashicorp/go-plugin"
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
	// EnvDebug is set by a person and makes a plugin run on its own and print a line
	// for EnvReattach.
	EnvDebug = "STEPD_PLUGIN_DEBUG"
	// EnvReattach names plugins that run already, as JSON, for
	// `stepd run --debug-plugin`.
	EnvReattach = "STEPD_REATTACH_PLUGINS"
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

// Reattach says where a plugin that runs already can be reached.
type Reattach struct {
	Pid     int    `json:"pid"`
	Network string `json:"network"`
	Address string `json:"address"`
}

// ParseReattach reads the value of EnvReattach; empty is none.
func ParseReattach(value string) (map[string]Reattach, error) {
	if value == "" {
		return nil, nil
	}
	var at map[string]Reattach
	if err := json.Unmarshal([]byte(value), &at); err != nil {
		return nil, fmt.Errorf("cannot read %s, which is the line that a plugin under %s prints: %w", EnvReattach, EnvDebug, err)
	}
	return at, nil
}
