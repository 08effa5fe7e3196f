package atomiccommit

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/stepd/stepd/internal/verification"
	"github.com/stepd/stepd/steps"
)

// The audit trailers. Their names are reserved, and so is everything that
// begins with "Kargo-" or "Stepd-".
const (
	trailerArtifact  = "Config-Artifact"
	trailerSigner    = "Signed-By"
	trailerSource    = "Source-Commit"
	trailerRun       = "Source-Run"
	trailerPromotion = "Kargo-Promotion"
	trailerStage     = "Kargo-Stage"
	trailerFreight   = "Kargo-Freight"
	trailerActor     = "Promoted-By"
	trailerChange    = "Stepd-Change"
)

var reserved = regexp.MustCompile(`(?i)^(config-artifact|signed-by|source-commit|source-run|promoted-by|kargo-.*|stepd-.*)$`)

// trailerLine is git's idea of a trailer (trailer.c): a token, spaces, a colon.
var trailerLine = regexp.MustCompile(`^([A-Za-z0-9-]+)[ \t]*:[ \t]*(.*)$`)

type trailer struct{ key, value string }

// composeMessage builds the whole commit message. Free text cannot forge an
// audit trailer: a line that looks like one is refused wherever it stands.
func composeMessage(sc *steps.Context, cfg *config, record *verification.Record, c *change) (string, error) {
	body, err := userText(cfg.Message)
	if err != nil {
		return "", err
	}
	if body == "" {
		body = defaultMessage(sc, record)
	}
	var ts []trailer
	for _, key := range slices.Sorted(maps.Keys(cfg.Trailers)) {
		if reserved.MatchString(key) {
			return "", configErrorf("the trailer %q is reserved for the audit chain; use another name", key)
		}
		ts = append(ts, trailer{key, cfg.Trailers[key]})
	}
	ts = append(ts, auditTrailers(sc, record)...)
	ts = append(ts, trailer{trailerChange, c.id})

	var b strings.Builder
	b.WriteString(body)
	if !endsInTrailers(body) {
		b.WriteString("\n")
	}
	for _, t := range ts {
		if v := oneLine(t.value); v != "" {
			fmt.Fprintf(&b, "%s: %s\n", t.key, v)
		}
	}
	return b.String(), nil
}

func auditTrailers(sc *steps.Context, record *verification.Record) []trailer {
	var ts []trailer
	if record != nil {
		artifact := record.Repository
		if record.Tag != "" {
			artifact += ":" + record.Tag
		}
		signer := record.Signer.Subject
		if signer == "" && record.Signer.KeyID != "" {
			signer = "key " + record.Signer.KeyID
		}
		source := record.Signer.SourceCommit
		if source == "" { // inside the signed manifest
			source = record.Annotations["org.opencontainers.image.revision"]
		}
		ts = append(ts,
			trailer{trailerArtifact, artifact + "@" + record.Digest},
			trailer{trailerSigner, signer},
			trailer{trailerSource, source},
			trailer{trailerRun, record.Signer.RunURL},
		)
	}
	return append(ts,
		trailer{trailerPromotion, sc.Project + "/" + sc.Promotion},
		trailer{trailerStage, sc.Project + "/" + sc.Stage},
		trailer{trailerFreight, freightName(sc)},
		trailer{trailerActor, sc.PromotionActor},
	)
}

func freightName(sc *steps.Context) string {
	if sc.TargetFreightRef.Name != "" {
		return sc.TargetFreightRef.Name
	}
	if refs := sc.Freight.References(); len(refs) == 1 {
		return refs[0].Name
	}
	return sc.Freight.ID
}

func defaultMessage(sc *steps.Context, record *verification.Record) string {
	what := "configuration"
	if record != nil && record.Tag != "" {
		what = oneLine(record.Tag)
	}
	return fmt.Sprintf("Promote %s to %s/%s\n", what, oneLine(sc.Project), oneLine(sc.Stage))
}

// userText cleans a message of the user's and ends it with one newline; empty
// stays empty.
func userText(s string) (string, error) {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\r\n", "\n")
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == '\r', r == '\u2028', r == '\u2029', r == '\u0085':
			return '\n'
		case unicode.IsControl(r):
			return -1
		}
		return r
	}, s)
	lines := strings.Split(strings.Trim(s, "\n"), "\n")
	for i, line := range lines {
		line = strings.TrimRight(line, " \t")
		if m := trailerLine.FindStringSubmatch(strings.TrimLeft(line, " \t")); m != nil && reserved.MatchString(m[1]) {
			return "", configErrorf("line %d of the message looks like the audit trailer %q, which only stepd writes; reword it", i+1, m[1])
		}
		if strings.HasPrefix(line, "---") { // git-interpret-trailers(1) takes this for the end of the message
			line = " " + line
		}
		lines[i] = line
	}
	if s = strings.Join(lines, "\n"); strings.TrimSpace(s) == "" {
		return "", nil
	}
	return s + "\n", nil
}

// oneLine makes a trailer's value safe: no control characters, no newlines.
func oneLine(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "")))
}

// endsInTrailers tells whether the last paragraph is one of trailers, to which
// ours are added.
func endsInTrailers(body string) bool {
	paragraphs := strings.Split(strings.TrimRight(body, "\n"), "\n\n")
	if len(paragraphs) < 2 {
		return false
	}
	last := strings.TrimLeft(paragraphs[len(paragraphs)-1], "\n")
	for i, line := range strings.Split(last, "\n") {
		folded := i > 0 && (line[0] == ' ' || line[0] == '\t') // goes on with the value before
		if !folded && !trailerLine.MatchString(line) {
			return false
		}
	}
	return true
}

// parseTrailers reads the trailers of a commit message: the lines of that form
// in its last paragraph, when it is not the first.
func parseTrailers(message string) []trailer {
	message = strings.TrimRight(strings.ReplaceAll(message, "\r\n", "\n"), "\n")
	i := strings.LastIndex(message, "\n\n")
	if i < 0 {
		return nil
	}
	var ts []trailer
	for line := range strings.SplitSeq(message[i+2:], "\n") {
		if m := trailerLine.FindStringSubmatch(line); m != nil {
			ts = append(ts, trailer{m[1], m[2]})
		}
	}
	return ts
}
