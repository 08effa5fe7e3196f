package plugin

import (
	"context"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// maxRecords is how many records of one process are logged: what a plugin
// writes to standard error costs it nothing and us a line each.
const maxRecords = 10_000

// maxText is how much of a message or a value is logged.
const maxText = 4 << 10

// newLogger lets go-plugin, and through it a plugin's standard error, log to
// slog, each record under the alias of the step that the plugin was last given.
// Once closing is set, connections are torn down under those who still
// write to them, and what they say of it is for debugging only.
func newLogger(to *slog.Logger, step *atomic.Pointer[string], closing *atomic.Bool) hclog.Logger {
	left := &atomic.Int64{}
	left.Store(maxRecords)
	return &hcLogger{to: to, left: left, step: step, closing: closing}
}

// hcLogger is an hclog.Logger over slog. go-plugin's own chatter is debug: it
// logs without a name, and what it reads from a plugin under the plugin's.
type hcLogger struct {
	to      *slog.Logger
	name    string
	args    []any
	left    *atomic.Int64
	step    *atomic.Pointer[string]
	closing *atomic.Bool
}

// Log implements hclog.Logger.
func (l *hcLogger) Log(level hclog.Level, msg string, args ...any) {
	switch level {
	case hclog.Warn:
		l.log(slog.LevelWarn, msg, args)
	case hclog.Error:
		l.log(slog.LevelError, msg, args)
	case hclog.Info:
		l.log(slog.LevelInfo, msg, args)
	default:
		l.log(slog.LevelDebug, msg, args)
	}
}

func (l *hcLogger) log(level slog.Level, msg string, args []any) {
	if l.closing.Load() || (l.name == "" && level < slog.LevelWarn) {
		level = min(level, slog.LevelDebug)
	}
	switch left := l.left.Add(-1); {
	case left < -1:
	case left < 0:
		l.to.Warn("the plugin wrote too much; no more of it is logged", "records", maxRecords)
	default:
		bounded := make([]any, 0, len(args)+2)
		for i := 0; i < len(args); i++ {
			switch a := args[i].(type) {
			case string:
				if i%2 == 0 && a == "plugin" { // the logger says it in every record
					i++
					continue
				}
				bounded = append(bounded, cut(a))
			default:
				bounded = append(bounded, a)
			}
		}
		if step := l.step.Load(); step != nil {
			bounded = append(bounded, "step", *step)
		}
		l.to.Log(context.Background(), level, cut(msg), bounded...)
	}
}

func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText], "") + "…"
}

// Trace implements hclog.Logger.
func (l *hcLogger) Trace(msg string, args ...any) { l.log(slog.LevelDebug-4, msg, args) }

// Debug implements hclog.Logger.
func (l *hcLogger) Debug(msg string, args ...any) { l.log(slog.LevelDebug, msg, args) }

// Info implements hclog.Logger.
func (l *hcLogger) Info(msg string, args ...any) { l.log(slog.LevelInfo, msg, args) }

// Warn implements hclog.Logger.
func (l *hcLogger) Warn(msg string, args ...any) { l.log(slog.LevelWarn, msg, args) }

// Error implements hclog.Logger.
func (l *hcLogger) Error(msg string, args ...any) { l.log(slog.LevelError, msg, args) }

// IsTrace implements hclog.Logger.
func (l *hcLogger) IsTrace() bool { return l.enabled(slog.LevelDebug - 4) }

// IsDebug implements hclog.Logger.
func (l *hcLogger) IsDebug() bool { return l.enabled(slog.LevelDebug) }

// IsInfo implements hclog.Logger.
func (l *hcLogger) IsInfo() bool { return l.enabled(slog.LevelInfo) }

// IsWarn implements hclog.Logger.
func (l *hcLogger) IsWarn() bool { return l.enabled(slog.LevelWarn) }

// IsError implements hclog.Logger.
func (l *hcLogger) IsError() bool { return l.enabled(slog.LevelError) }

func (l *hcLogger) enabled(level slog.Level) bool { return l.to.Enabled(context.Background(), level) }

// ImpliedArgs implements hclog.Logger.
func (l *hcLogger) ImpliedArgs() []any { return l.args }

// With implements hclog.Logger.
func (l *hcLogger) With(args ...any) hclog.Logger {
	return &hcLogger{l.to.With(args...), l.name, append(l.args[:len(l.args):len(l.args)], args...), l.left, l.step, l.closing}
}

// Name implements hclog.Logger.
func (l *hcLogger) Name() string { return l.name }

// Named implements hclog.Logger.
func (l *hcLogger) Named(name string) hclog.Logger { return l.ResetNamed(name) }

// ResetNamed implements hclog.Logger.
func (l *hcLogger) ResetNamed(name string) hclog.Logger {
	return &hcLogger{l.to, name, l.args, l.left, l.step, l.closing}
}

// SetLevel implements hclog.Logger; the level is slog's business.
func (l *hcLogger) SetLevel(hclog.Level) {}

// GetLevel implements hclog.Logger.
func (l *hcLogger) GetLevel() hclog.Level {
	for _, level := range []hclog.Level{hclog.Trace, hclog.Debug, hclog.Info, hclog.Warn} {
		if l.enabled(map[hclog.Level]slog.Level{
			hclog.Trace: slog.LevelDebug - 4, hclog.Debug: slog.LevelDebug, hclog.Info: slog.LevelInfo, hclog.Warn: slog.LevelWarn,
		}[level]) {
			return level
		}
	}
	return hclog.Error
}

// StandardLogger implements hclog.Logger.
func (l *hcLogger) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}

// StandardWriter implements hclog.Logger.
func (l *hcLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelInfo).Writer()
}
