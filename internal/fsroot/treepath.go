// Package fsroot says which paths inside a work dir or a Git tree are safe to
// write, and reads and writes files below a work dir without leaving it.
//
// Paths come from configuration and from artifacts, and both are hostile. What
// a path means to a particular repository (symbolic links and submodules on the
// way) is checked where its trees are known, in internal/gitrepo.
package fsroot

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"
)

// PathError says why a path is refused.
type PathError struct{ Path, Reason string }

// Error implements error.
func (e *PathError) Error() string { return fmt.Sprintf("unsafe path %q: %s", e.Path, e.Reason) }

// CheckTreePath tells whether a slash-separated path may be written to a Git
// tree that people will check out on any system. The rules are git's
// (read-cache.c verify_path, fsck.c, CVE-2014-9390, CVE-2019-1352 and
// following) and a little stricter; an error is a *PathError.
func CheckTreePath(p string) error {
	refuse := func(format string, args ...any) error {
		return &PathError{Path: p, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case p == "":
		return refuse("it is empty")
	case len(p) > 4096:
		return &PathError{Path: p[:40] + "…", Reason: "it is longer than 4096 bytes"}
	case !utf8.ValidString(p):
		return refuse("it is not valid UTF-8")
	case strings.HasPrefix(p, "/"):
		return refuse("it is absolute")
	case strings.HasSuffix(p, "/"):
		return refuse("it ends in a slash")
	}
	for _, r := range p {
		switch {
		case r == '\\':
			return refuse("it has a backslash, which separates directories on Windows")
		case r == ':':
			return refuse("it has a colon, which names a drive or a stream on Windows")
		case unicode.IsControl(r):
			return refuse("it has a control character")
		case hfsIgnored(r):
			return refuse("it has the invisible character %U, which macOS ignores in names", r)
		}
	}
	for part := range strings.SplitSeq(p, "/") {
		switch {
		case part == "":
			return refuse("it has an empty component")
		case part == "." || part == "..":
			return refuse("it has the component %q", part)
		case len(part) > 255:
			return refuse("it has a component of more than 255 bytes")
		case isDotGit(part):
			return refuse("%q is, or is read on some systems as, Git's own directory", part)
		case isDotGitModules(part):
			return refuse("%q configures submodules", part)
		}
	}
	return nil
}

// IsLocal tells whether a configured path stays below the directory it is
// relative to, without looking at the file system.
func IsLocal(p string) bool { return filepath.IsLocal(filepath.FromSlash(p)) }

// isDotGit matches .git in any case, with what Windows drops from the end of a
// name, and its 8.3 short names.
func isDotGit(name string) bool {
	n := strings.ToLower(strings.TrimRight(name, " ."))
	if n == ".git" {
		return true
	}
	rest, ok := strings.CutPrefix(n, "git~")
	return ok && rest != "" && strings.Trim(rest, "0123456789") == ""
}

// isDotGitModules matches .gitmodules and the short names Windows may give it:
// the first six letters and a number, or two letters and a hash.
func isDotGitModules(name string) bool {
	n := strings.ToLower(strings.TrimRight(name, " ."))
	if n == ".gitmodules" {
		return true
	}
	for _, prefix := range []string{"gitmod~", "gi7eba~", "gi7eb~", "gi7e~"} {
		if rest, ok := strings.CutPrefix(n, prefix); ok && rest != "" && strings.Trim(rest, "0123456789") == "" {
			return true
		}
	}
	return false
}

// hfsIgnored are the code points that HFS+ leaves out when it compares names
// (git's utf8.c next_hfs_char).
func hfsIgnored(r rune) bool {
	return r >= 0x200c && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x206a && r <= 0x206f || r == 0xfeff
}
