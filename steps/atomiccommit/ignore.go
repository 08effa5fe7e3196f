package atomiccommit

import (
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// ignoreRule is one line of a .gitignore file (gitignore(5)). go-git's matcher
// reads classes and re-included directories in other ways than git.
type ignoreRule struct {
	// matches as the pattern of an attribute does.
	attributeRule
	dirOnly, negated bool
}

// parseIgnore reads a .gitignore file of a directory, "" for the root.
func parseIgnore(text, dir string) ([]ignoreRule, error) {
	var rules []ignoreRule
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		whole := strings.TrimRight(line, "\r\n")
		pattern := trimSpaces(whole)
		if pattern == "" || strings.HasPrefix(pattern, "#") {
			continue
		}
		var r ignoreRule
		r.dir = dir
		pattern, r.negated = strings.CutPrefix(pattern, "!")
		pattern, r.dirOnly = strings.CutSuffix(pattern, "/")
		r.anywhere = !strings.Contains(pattern, "/")
		r.pattern = asDoublestar(strings.TrimPrefix(pattern, "/"))
		if strings.Contains(pattern, "[[:") { // classes by name
			return nil, configErrorf("cannot understand the line %q of .gitignore in %q", oneLine(whole), dir)
		}
		if doublestar.ValidatePattern(r.pattern) { // the others match nothing
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// trimSpaces drops trailing spaces that no backslash protects.
func trimSpaces(line string) string {
	end := 0
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case ' ':
			continue
		case '\\':
			i = min(i+1, len(line)-1)
		}
		end = i + 1
	}
	return line[:end]
}

// ignored tells what the rules say of a path whose directory is not ignored: the
// last one that matches decides.
func ignored(rules []ignoreRule, path string, isDir bool) bool {
	for i := len(rules) - 1; i >= 0; i-- {
		if r := rules[i]; (isDir || !r.dirOnly) && r.matches(path) {
			return !r.negated
		}
	}
	return false
}
