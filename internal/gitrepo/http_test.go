package gitrepo

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stepd/stepd/internal/gitrepo/gittest"
)

func TestTLSWithOwnAuthority(t *testing.T) {
	g := gittest.New(t)
	g.MustCreate(t, "r.git")
	g.MustCommit(t, "r.git", "one", map[string]string{"a": "1\n"})
	back, err := url.Parse(g.URL)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(back))
	defer front.Close()
	front.Config.ErrorLog = nil
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	live := NewLive(LiveOptions{})
	for name, tc := range map[string]struct {
		target Target
		ok     bool
	}{
		"unknown authority": {Target{}, false},
		"caBundle":          {Target{CABundle: ca}, true},
		"not a bundle":      {Target{CABundle: []byte("x")}, false},
		"skipped":           {Target{InsecureSkipTLSVerify: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			tc.target.URL = front.URL + "/r.git"
			r, err := live.Dial(t.Context(), tc.target)
			if err == nil {
				_, err = r.Refs(t.Context(), "main")
			}
			if (err == nil) != tc.ok {
				t.Errorf("err = %v, want ok %t", err, tc.ok)
			}
			if err != nil && !Permanent(err) {
				t.Errorf("%v could be tried again", err)
			}
		})
	}
}

func TestProxy(t *testing.T) {
	g := gittest.New(t)
	g.MustCreate(t, "r.git")
	g.MustCommit(t, "r.git", "one", map[string]string{"a": "1\n"})
	back, err := url.Parse(g.URL)
	if err != nil {
		t.Fatal(err)
	}
	var seen atomic.Int64
	forward := httputil.NewSingleHostReverseProxy(back)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		forward.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	through, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	live := NewLive(LiveOptions{Proxy: http.ProxyURL(through)})
	commitOnce(t, dial(t, live, "http://git.example.invalid/r.git"), file("a", "2\n"))
	if seen.Load() == 0 {
		t.Error("the proxy saw nothing")
	}
	g.Fsck(t, "r.git")
}

func TestRedirects(t *testing.T) {
	g := gittest.New(t)
	g.MustCreate(t, "new.git")
	g.MustCommit(t, "new.git", "one", map[string]string{"a": "1\n"})
	var leaked atomic.Bool
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		http.NotFound(w, r)
	}))
	defer thief.Close()
	g.Wrap(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasPrefix(r.URL.Path, "/old.git"):
				http.Redirect(w, r, strings.Replace(r.URL.RequestURI(), "/old.git", "/new.git", 1), http.StatusMovedPermanently)
			case strings.HasPrefix(r.URL.Path, "/stolen.git"):
				http.Redirect(w, r, thief.URL+r.URL.RequestURI(), http.StatusTemporaryRedirect)
			case strings.HasPrefix(r.URL.Path, "/loop.git"):
				http.Redirect(w, r, r.URL.RequestURI(), http.StatusFound)
			default:
				h.ServeHTTP(w, r)
			}
		})
	})
	live := NewLive(LiveOptions{})
	creds := Credentials{Username: "u", Password: "secret-password"}
	get := func(name string) error {
		r, err := live.Dial(t.Context(), Target{URL: g.URL + name, Credentials: creds})
		if err != nil {
			return err
		}
		_, err = r.Refs(t.Context(), "main")
		return err
	}
	if err := get("/old.git"); err != nil {
		t.Errorf("a redirect within the origin: %v", err)
	}
	for _, name := range []string{"/stolen.git", "/loop.git"} {
		err := get(name)
		if err == nil {
			t.Errorf("%s was followed", name)
		}
		if err != nil && strings.Contains(err.Error(), "secret-password") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
	if leaked.Load() {
		t.Error("credentials went to another origin")
	}
}

func TestCredentialsStayOutOfErrors(t *testing.T) {
	for _, raw := range []string{
		"http://user:hunter2@127.0.0.1:1/r.git", "https://user:hunter2@%zz/", "http://user:hunter2@host/r?x=1", "ftp://user:hunter2@host/r",
	} {
		r, err := NewLive(LiveOptions{}).Dial(t.Context(), Target{URL: raw})
		if err == nil {
			_, err = r.Refs(t.Context(), "main")
		}
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("err = %v", err)
		}
	}
}

func TestManyReferencesCostNothing(t *testing.T) {
	g := gittest.New(t)
	url := g.MustCreate(t, "r.git")
	tip := g.MustCommit(t, "r.git", "one", map[string]string{"a": "1\n"})
	var packed strings.Builder
	packed.WriteString("# pack-refs with: peeled fully-peeled sorted\n")
	for i := range 20000 {
		fmt.Fprintf(&packed, "%s refs/heads/b%05d\n", tip, i)
	}
	packed.WriteString(tip + " refs/heads/main\n")
	g.WriteFile(t, "r.git", "packed-refs", packed.String())
	g.ResetStats()
	refs, err := dial(t, NewLive(LiveOptions{}), url).Refs(t.Context(), "main")
	if err != nil || refs.Heads["main"].String() != tip {
		t.Fatalf("%v, %v", refs, err)
	}
	if down := g.Stats().Down; down > 300 {
		t.Errorf("%d bytes for one reference among 20,000", down)
	}
}

func TestHostileAnswers(t *testing.T) {
	endless := func(w http.ResponseWriter, prefix, chunk string) {
		_, _ = io.WriteString(w, prefix)
		for {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	}
	line := func(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }
	for name, tc := range map[string]struct {
		reason string
		serve  func(w http.ResponseWriter)
		limit  bool
	}{
		"endless references": {"memory", func(w http.ResponseWriter) {
			endless(w, "", line(strings.Repeat("0", 40)+" refs/heads/"+strings.Repeat("x", 60000)+"\n"))
		}, true},
		"bad packet length": {"parser", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "zzzz") }, false},
		"length 3":          {"parser", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "0003") }, false},
		"short packet":      {"parser", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "00ffabc") }, false},
		"escape sequences": {"terminals", func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, line("ERR \x1b[31mred\x1b[0m\u202e"))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				kind := "-result"
				if r.Method == http.MethodGet {
					kind = "-advertisement"
				}
				w.Header().Set("Content-Type", "application/x-git-upload-pack"+kind)
				tc.serve(w)
			}))
			defer s.Close()
			_, err := dial(t, NewLive(LiveOptions{}), s.URL).Refs(t.Context(), "main")
			var limit *LimitError
			if err == nil || errors.As(err, &limit) != tc.limit {
				t.Errorf("err = %v, want a limit %t", err, tc.limit)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\x1b\u202e") {
				t.Errorf("%q reaches the terminal", err)
			}
		})
	}
}

// However many answers a server draws out a read to, what is kept of them ends.
func TestMemoryOfARemoteIsBounded(t *testing.T) {
	s := newObjects(8 << 20)
	data := make([]byte, maxObjectSize)
	var limit *LimitError
	for i := range 1000 {
		err := s.add(Object{ID: Hash{byte(i), byte(i >> 8)}, Type: blobObject, Data: data})
		if errors.As(err, &limit) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if limit == nil {
		t.Errorf("%d objects of %d bytes each are kept", len(s.blobs), len(data))
	}
	s.trim()
	if err := s.add(Object{Type: blobObject, Data: data}); err != nil {
		t.Errorf("after trimming: %v", err)
	}
}
