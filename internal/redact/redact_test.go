package redact

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/steps"
)

const secret = `p@ss "w0rd" <&> \o/`

func TestString(t *testing.T) {
	asJSONText := func(v any) string { b, _ := json.Marshal(v); return string(b) }
	cases := map[string]struct {
		reason  string
		secrets []string
		in      string
		want    string
	}{
		"Plain": {
			reason: "the value itself is masked wherever it stands", secrets: []string{secret},
			in: "a " + secret + " b" + secret, want: "a *** b***",
		},
		"JSON": {
			reason: "a JSON string escapes quotes and <&>", secrets: []string{secret},
			in: asJSONText(map[string]string{"p": secret}), want: `{"p":"***"}`,
		},
		"Quoted": {
			reason: "error texts often use %q", secrets: []string{secret},
			in: fmt.Sprintf("bad value %q", secret), want: `bad value "***"`,
		},
		"Query": {
			reason: "a secret in a query string is escaped", secrets: []string{secret},
			in: "GET /x?token=" + url.QueryEscape(secret), want: "GET /x?token=***",
		},
		"Userinfo": {
			reason: "a secret in the userinfo of a URL is escaped", secrets: []string{secret},
			in: (&url.URL{Scheme: "ssh", Host: "h", User: url.UserPassword("u", secret)}).String(), want: "ssh://u:***@h",
		},
		"UnknownURLPassword": {
			reason: "a password in a URL is one even when nobody added it",
			in:     "clone https://bot:tok:en@git.example.com/r.git and http://u@h http://h:80/a:b@c",
			want:   "clone https://bot:***@git.example.com/r.git and http://u@h http://h:80/a:b@c",
		},
		"Base64": {
			reason: "Secret data is base64", secrets: []string{"tok-1234567"},
			in: "data: " + base64.StdEncoding.EncodeToString([]byte("tok-1234567")), want: "data: ***=",
		},
		"Lines": {
			reason: "one line of a private key is already a leak; PEM armour is not", secrets: []string{"-----BEGIN KEY-----\nabcdefgh\nij\n-----END KEY-----\n"},
			in: "-----BEGIN KEY-----\n  abcdefgh", want: "-----BEGIN KEY-----\n  ***",
		},
		"Trimmed": {
			reason: "files end in a newline that users trim", secrets: []string{"hunter22\n"},
			in: "[hunter22]", want: "[***]",
		},
		"Short": {
			reason: "below the threshold nothing is masked", secrets: []string{"pw", "", "  a  "},
			in: "pw a", want: "pw a",
		},
		"Overlap": {
			reason: "two secrets that overlap leave no piece of either", secrets: []string{"abcdefgh", "efghijkl"},
			in: "<abcdefghijkl>", want: "<***>",
		},
		"Contained": {
			reason: "the longer of two secrets leaves no remainder", secrets: []string{"abcdef", "abcdefghij"},
			in: "<abcdefghij>", want: "<***>",
		},
		"Joined": {
			reason: "masking one secret must not uncover another", secrets: []string{"abcdef", "x***yz"},
			in: "xabcdefyz", want: "***",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := New()
			r.Add(tc.secrets...)
			if diff := cmp.Diff(tc.want, r.String(tc.in)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

func TestBasicAuthorizationIsMasked(t *testing.T) {
	for _, user := range []string{"", "a", "bot", "x-access-token"} {
		r := New()
		r.Add("s3cr3t-t0ken-value")
		got := r.String("Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":s3cr3t-t0ken-value")))
		b64 := got[strings.LastIndexByte(got, ' ')+1:]
		if !strings.Contains(got, Mask) || len(b64) > len(user)*2+len(Mask)+6 {
			t.Errorf("user %q: %q still holds the encoded password", user, got)
		}
	}
}

func TestLiteralLeavesOtherTextAlone(t *testing.T) {
	r := NewLiteral()
	r.Add("tok-1234567")
	in := "https://bot:other@git.example.com tok-1234567"
	if diff := cmp.Diff("https://bot:other@git.example.com ***", r.String(in)); diff != "" {
		t.Error(diff)
	}
}

func TestNilRedactor(t *testing.T) {
	var r *Redactor
	r.Add("tok-1234567")
	err := errors.New("x")
	if got := r.String("tok-1234567"); got != "tok-1234567" || r.Value("y") != "y" || !errors.Is(r.Error(err), err) {
		t.Errorf("a nil Redactor changed something: %q", got)
	}
}

type detailed struct{ why string }

func (d *detailed) Error() string { return "refused: " + d.why }

func TestError(t *testing.T) {
	r := New()
	r.Add("tok-1234567")
	inner := &detailed{why: "tok-1234567"}
	err := r.Error(fmt.Errorf("cannot push: %w: %w", inner, fs.ErrNotExist))
	if got := err.Error(); got != "cannot push: refused: ***: file does not exist" {
		t.Errorf("text is %q", got)
	}
	var d *detailed
	if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &d) || d != inner {
		t.Error("the chain is lost")
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		if strings.Contains(e.Error(), "tok-") {
			t.Error("unwrapping leads back to the secret")
		}
	}
	if strings.Contains(fmt.Sprintf("%v %s %+v", err, err, err), "tok-") {
		t.Error("a verb prints the secret")
	}
	if clean := errors.New("clean"); !errors.Is(r.Error(clean), clean) || strings.Contains(fmt.Sprintf("%T", r.Error(clean)), "masked") {
		t.Error("an error without a secret is not the same any more")
	}
	if r.Error(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestValue(t *testing.T) {
	type inner struct {
		Text string
		Raw  json.RawMessage
	}
	type outer struct {
		In    *inner
		Any   any
		Map   map[string][]string
		Count int
		Err   error
	}
	const s = "tok-1234567"
	in := outer{
		In: &inner{Text: s, Raw: json.RawMessage(`{"a":"` + s + `"}`)}, Any: []any{s, 1, nil, map[string]any{s: true}},
		Map: map[string][]string{"k": {"x" + s}}, Count: 3, Err: errors.New(s),
	}
	r := New()
	r.Add(s)
	got := r.Value(in).(outer)
	if got.Err.Error() != Mask {
		t.Errorf("error: %v", got.Err)
	}
	got.Err = nil
	want := outer{
		In: &inner{Text: Mask, Raw: json.RawMessage(`{"a":"***"}`)}, Any: []any{Mask, 1, nil, map[string]any{Mask: true}},
		Map: map[string][]string{"k": {"x" + Mask}}, Count: 3,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if in.In.Text != s || in.Map["k"][0] != "x"+s {
		t.Error("the input was changed")
	}
	if r.Value(nil) != nil || r.Value(errors.New(s)).(error).Error() != Mask {
		t.Error("nil or an error on its own is wrong")
	}
	type cycle struct{ Next *cycle }
	c := &cycle{}
	c.Next = c
	if r.Value(c) == nil {
		t.Error("a cycle is lost")
	}
}

func TestHandler(t *testing.T) {
	const s = "tok-1234567"
	for name, inner := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			r := New()
			log := slog.New(r.Handler(inner(&out))).With("early", s, "err", errors.New(s)).WithGroup("g" + s).With(slog.Group("h", "x", s))
			r.Add(s) // learnt after With
			u, _ := url.Parse("https://u:" + s + "@h/")
			log.Info("hello "+s, "k", s, s, 1, "b", []byte(s), "u", u, "m", map[string]any{"a": []string{s}}, "n", 7)
			got := out.String()
			if strings.Contains(got, s) || strings.Contains(got, base64.StdEncoding.EncodeToString([]byte(s))) {
				t.Errorf("leaked: %s", got)
			}
			for _, want := range []string{"hello ***", "early", "n"} {
				if !strings.Contains(got, want) {
					t.Errorf("%q is missing from %s", want, got)
				}
			}
		})
	}
}

func TestWriterHoldsBackTheBeginningOfASecret(t *testing.T) {
	const s = "tok-1234567"
	in := "a " + s + " https://u:shortpw@h/x " + s + " tok-1 end tok-12"
	for size := 1; size < 20; size++ {
		var out bytes.Buffer
		r := New()
		r.Add(s)
		w := r.Writer(&out)
		for rest := in; rest != ""; {
			n := min(size, len(rest))
			if _, err := w.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff("a *** https://u:***@h/x *** tok-1 end tok-12", out.String()); diff != "" {
			t.Errorf("writes of %d bytes: %s", size, diff)
		}
	}
}

type source struct{ err error }

func (s source) Get(context.Context, string, steps.CredentialType, string) (*steps.Credentials, error) {
	return &steps.Credentials{Username: "bot-user", Password: "git-password", SSHPrivateKey: "ssh-private-key"}, s.err
}
func (s source) GitUser(context.Context) (steps.GitUser, error) {
	return steps.GitUser{Name: "Bot Name", SigningKey: "signing-key"}, s.err
}
func (s source) Secret(context.Context, string, string) (map[string][]byte, error) {
	return map[string][]byte{"k": []byte("secret-value")}, s.err
}

func TestSourcesMakeSecretsKnown(t *testing.T) {
	r := New()
	src := source{err: errors.New("git-password ssh-private-key signing-key secret-value bot-user")}
	ctx := context.Background()
	_, err1 := r.Credentials(src).Get(ctx, "p", steps.CredentialsGit, "u")
	_, err2 := r.GitUser(src).GitUser(ctx)
	_, err3 := r.Secrets(src).Secret(ctx, "p", "n")
	want := []string{"*** *** signing-key secret-value bot-user", "*** *** *** secret-value bot-user", "*** *** *** *** bot-user"}
	if diff := cmp.Diff(want, []string{err1.Error(), err2.Error(), err3.Error()}); diff != "" {
		t.Error(diff)
	}
}

func FuzzString(f *testing.F) {
	f.Add("abcdefgh", "x ", " y")
	f.Add(secret, "https://u:", "@h")
	f.Add("line one\nline two", "", "***")
	f.Fuzz(func(t *testing.T, s, before, after string) {
		r := New()
		r.Add(s)
		if len(strings.TrimSpace(s)) < MinLength {
			return
		}
		got := r.String(before + s + after)
		if strings.Contains(got, s) {
			t.Fatalf("%q still holds %q", got, s)
		}
		var out bytes.Buffer
		w := r.Writer(&out)
		for _, part := range []string{before, s[:len(s)/2], s[len(s)/2:], after} {
			if _, err := w.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), s) {
			t.Fatalf("stream %q holds %q", out.String(), s)
		}
		r.Value(map[string]any{before: []any{s, after}})
	})
}
