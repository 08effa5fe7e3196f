package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// nonroot is the user and group of the image, as in distroless images. In a
// Kargo controller's pod the pod's own user replaces it.
const nonroot = 65532

// node is a file or folder of a layer. Layers list parents before children.
type node struct {
	name  string // slash-separated, relative; a folder ends in a slash
	mode  int64
	owner int // of user and group
	text  []byte
	from  string // file to copy in place of text
}

// base is what a static program expects of a system: certificates of the web's
// authorities, a user with a name and a home, a place for temporary files.
func base() []node {
	return []node{
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644, text: fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", nonroot)},
		{name: "etc/nsswitch.conf", mode: 0o644, text: []byte("hosts: files dns\n")},
		{name: "etc/passwd", mode: 0o644, text: fmt.Appendf(nil,
			"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:%[1]d:%[1]d:nonroot:/home/nonroot:/sbin/nologin\n", nonroot)},
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, text: authorities()},
		{name: "home/", mode: 0o755},
		{name: "home/nonroot/", mode: 0o700, owner: nonroot},
		{name: "tmp/", mode: 0o1777},
	}
}

// authorities are Mozilla's, as golang.org/x/crypto bundles them: the same on
// every machine that builds. One that is trusted only up to a date is left out,
// because a PEM file cannot say so.
func authorities() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a buffer takes everything
	}
	return out.Bytes()
}

// executable is a layer with one program.
func executable(p program) []node {
	return []node{
		{name: "usr/", mode: 0o755},
		{name: "usr/local/", mode: 0o755},
		{name: "usr/local/bin/", mode: 0o755},
		{name: "usr/local/bin/" + p.name, mode: 0o755, from: p.file},
	}
}

// layer is a compressed tar file on disk.
type layer struct {
	ocispec.Descriptor
	diffID digest.Digest // of the tar file
	file   string
}

// writeLayer writes nodes as a layer into dir. All times are 1970, so that a
// layer that did not change has the digest it had.
func writeLayer(dir string, nodes []node) (layer, error) {
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return layer{}, fmt.Errorf("cannot make a layer: %w", err)
	}
	defer f.Close() //nolint:errcheck // closed below; this is for the way out
	compressed, plain := digest.SHA256.Digester(), digest.SHA256.Digester()
	zip := gzip.NewWriter(io.MultiWriter(f, compressed.Hash()))
	archive := tar.NewWriter(io.MultiWriter(zip, plain.Hash()))
	for _, n := range nodes {
		if err := n.write(archive); err != nil {
			return layer{}, fmt.Errorf("cannot put %s into a layer: %w", n.name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return layer{}, fmt.Errorf("cannot end a layer: %w", err)
	}
	if err := zip.Close(); err != nil {
		return layer{}, fmt.Errorf("cannot end a layer: %w", err)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return layer{}, fmt.Errorf("cannot measure a layer: %w", err)
	}
	if err := f.Close(); err != nil {
		return layer{}, fmt.Errorf("cannot write a layer: %w", err)
	}
	return layer{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: compressed.Digest(), Size: size},
		diffID:     plain.Digest(), file: f.Name(),
	}, nil
}

func (n node) write(archive *tar.Writer) error {
	header := &tar.Header{
		Name: n.name, Mode: n.mode, Uid: n.owner, Gid: n.owner, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
		Typeflag: tar.TypeReg, Size: int64(len(n.text)),
	}
	var content io.Reader = bytes.NewReader(n.text)
	switch {
	case n.name[len(n.name)-1] == '/':
		header.Typeflag = tar.TypeDir
	case n.from != "":
		f, err := os.Open(filepath.Clean(n.from))
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // only read
		stat, err := f.Stat()
		if err != nil {
			return err
		}
		header.Size, content = stat.Size(), f
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(archive, content)
	return err
}
