package builtin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/stepd/stepd/internal/ociart"
	"github.com/stepd/stepd/internal/ocipush"
	"github.com/stepd/stepd/steps"
)

type ociPushConfig struct {
	SrcRef                string            `json:"srcRef"`
	DestRef               string            `json:"destRef"`
	Annotations           map[string]string `json:"annotations"`
	InsecureSkipTLSVerify bool              `json:"insecureSkipTLSVerify"`
}

// DefaultMaxPush is Kargo's default for MAX_OCI_PUSH_ARTIFACT_SIZE, in bytes.
const DefaultMaxPush = 1 << 30

// OCIPush is `oci-push`: it copies an artifact from registry to registry, or
// gives it another tag. maxSize bounds copies between repositories, in
// compressed bytes; 0 forbids them, -1 lifts the limit.
func OCIPush(destinations ocipush.Destinations, maxSize int64) steps.Registration {
	return registration("oci-push", runWith(func(ctx context.Context, sc *steps.Context, caps steps.Capabilities) (steps.Result, error) {
		return ociPusher{destinations, maxSize, caps}.run(ctx, sc)
	}), steps.AccessCredentials)
}

type ociPusher struct {
	destinations ocipush.Destinations
	maxSize      int64
	caps         steps.Capabilities
}

func (p ociPusher) run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[ociPushConfig](sc)
	if err != nil {
		return failed(err)
	}
	from, err := ociart.ParseReference(cfg.SrcRef)
	if err != nil {
		return failed(fmt.Errorf("srcRef: %w", err))
	}
	to, err := ociart.ParseReference(cfg.DestRef)
	if err != nil {
		return failed(fmt.Errorf("destRef: %w", err))
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		DisableCompression: true,                                                                                     // digests are of the bytes as stored
		TLSClientConfig:    &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: cfg.InsecureSkipTLSVerify}, //nolint:gosec // asked for by the step's config
	}
	defer transport.CloseIdleConnections()
	src, err := p.repository(ctx, sc, from, transport)
	if err != nil {
		return errored(err)
	}
	dst, err := p.repository(ctx, sc, to, transport)
	if err != nil {
		return errored(err)
	}
	reference := from.Digest
	if reference == "" {
		reference = from.Tag
	}
	desc, err := ocipush.Copy(ctx, src, reference, p.destinations.Destination(dst, sc.Alias), to.Tag, ocipush.Options{
		SameRepository: from.Name() == to.Name(), MaxSize: p.maxSize, Annotations: cfg.Annotations,
	})
	if err != nil {
		err = fmt.Errorf("error pushing %s to %s: %w", cfg.SrcRef, cfg.DestRef, err)
		if errors.Is(err, ocipush.ErrTooLarge) || errors.Is(err, ocipush.ErrMediaType) {
			err = steps.Terminal(err)
		}
		return errored(err)
	}
	return succeeded(map[string]any{"image": kargoName(to), "digest": string(desc.Digest), "tag": to.Tag})
}

// kargoName writes a reference the way go-containerregistry does.
func kargoName(ref ociart.Reference) string {
	name := ref.Name() + ":" + ref.Tag
	if ref.Registry == "docker.io" {
		return "index." + name
	}
	return name
}

// repository opens a repository with the credentials of ref. Registries on
// loopback are spoken to in plain HTTP, unless TLS verification is skipped,
// which asks for TLS.
func (p ociPusher) repository(ctx context.Context, sc *steps.Context, ref ociart.Reference, transport *http.Transport) (*remote.Repository, error) {
	repo, err := remote.NewRepository(ref.Name())
	if err != nil {
		return nil, err
	}
	client := &auth.Client{Client: &http.Client{Transport: transport}, Cache: auth.NewCache()}
	client.SetUserAgent("stepd")
	if p.caps.Credentials != nil {
		typ, url := steps.CredentialsImage, ref.Name()
		if ref.Helm {
			typ, url = steps.CredentialsHelm, "oci://"+url
		}
		found, err := p.caps.Credentials.Get(ctx, sc.Project, typ, url)
		if err != nil {
			return nil, fmt.Errorf("error getting credentials for %s: %w", ref.Name(), err)
		}
		if found != nil {
			credential := auth.Credential{Username: found.Username, Password: found.Password}
			if found.Username == "<token>" {
				credential = auth.Credential{RefreshToken: found.Password}
			}
			client.Credential = auth.StaticCredential(repo.Reference.Host(), credential)
		}
	}
	repo.Client = client
	repo.PlainHTTP = isLoopback(ref.Registry) && !transport.TLSClientConfig.InsecureSkipVerify
	return repo, nil
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
