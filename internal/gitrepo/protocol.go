package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// Limits on answers. Reference advertisements of protocol v0 list every
// reference.
const (
	maxAdvertisement = 64 << 20
	maxReport        = 1 << 20
	maxFilteredPack  = 128 << 20
	maxFullPack      = 8 << 30
	// packMemory bounds the commits and trees of one pack in memory.
	packMemory = 256 << 20
)

// profile is what a server can do. The zero profile is unknown.
type profile struct {
	known bool
	v2    bool
	// filter: partial fetches; shallow: fetches by depth; byID: any object can
	// be asked for; multiAck: wants it on every v0 request.
	filter, shallow, byID, multiAck bool
	// noTreeDepth: knows no filter tree:1. treesAlone: does not give trees and
	// history in one answer.
	noTreeDepth, treesAlone bool
}

// bringsAncestors tells whether a fetch of trees by id can bring commits, to a
// depth, and no other trees.
func (p profile) bringsAncestors() bool {
	return p.filter && p.shallow && p.byID && !p.treesAlone
}

// assumed is what nearly every HTTP server since 2018 can do. When it proves
// wrong, the server is asked.
var assumed = profile{v2: true, filter: true, shallow: true, byID: true}

// advertisement is a decoded advertisement. With protocol v2 it has no refs.
type advertisement struct {
	profile
	refs   map[string]Hash
	head   string
	noRefs bool
}

// readAdvertisement decodes what upload-pack or receive-pack says first.
func readAdvertisement(r io.Reader) (*advertisement, error) {
	p := newPktReader(limit(r, maxAdvertisement, "a reference advertisement"))
	a := &advertisement{refs: map[string]Hash{}}
	kind, line, err := p.line()
	if err != nil {
		return nil, unexpectedEnd(err)
	}
	if strings.HasPrefix(line, "# service=") { // over HTTP
		if kind, line, err = p.line(); err == nil && kind == pktFlush {
			kind, line, err = p.line()
		}
		if err != nil {
			return nil, unexpectedEnd(err)
		}
	}
	if line == "version 2" {
		return a, a.readV2(p)
	}
	if line == "version 1" {
		if kind, line, err = p.line(); err != nil {
			return nil, unexpectedEnd(err)
		}
	}
	a.noRefs = true
	for first := true; kind == pktData; first = false {
		if first {
			var caps string
			line, caps, _ = strings.Cut(line, "\x00")
			if err := a.readCaps(strings.Fields(caps)); err != nil {
				return nil, err
			}
		}
		id, name, ok := strings.Cut(line, " ")
		switch {
		case id == "shallow":
		case !ok || !plumbing.IsHash(id):
			return nil, malformed("a reference advertisement with the line %q", clean(line))
		case name == "capabilities^{}" || strings.HasSuffix(name, "^{}"):
		default:
			a.refs[name] = plumbing.NewHash(id)
			a.noRefs = false
		}
		if kind, line, err = p.line(); err != nil {
			return nil, unexpectedEnd(err)
		}
	}
	a.known = true
	return a, nil
}

func (a *advertisement) readV2(p *pktReader) error {
	a.known, a.v2, a.byID = true, true, true
	for {
		kind, line, err := p.line()
		if err != nil {
			return unexpectedEnd(err)
		}
		if kind != pktData {
			return nil
		}
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "fetch":
			for _, f := range strings.Fields(value) {
				a.filter = a.filter || f == "filter"
				a.shallow = a.shallow || f == "shallow"
			}
		case "object-format":
			if value != "sha1" {
				return &objectFormatError{format: clean(value)}
			}
		}
	}
}

func (a *advertisement) readCaps(caps []string) error {
	sideband := false
	for _, c := range caps {
		key, value, _ := strings.Cut(c, "=")
		switch key {
		case "filter":
			a.filter = true
		case "shallow":
			a.shallow = true
		case "allow-reachable-sha1-in-want", "allow-any-sha1-in-want":
			a.byID = true
		case "multi_ack":
			a.multiAck = true
		case "side-band-64k":
			sideband = true
		case "symref":
			if head, ok := strings.CutPrefix(value, "HEAD:refs/heads/"); ok {
				a.head = head
			}
		case "object-format":
			if value != "sha1" {
				return &objectFormatError{format: clean(value)}
			}
		}
	}
	if !sideband {
		return malformed("no side-band-64k capability")
	}
	return nil
}

// lsRefs asks a v2 server for references below prefixes.
func lsRefs(ctx context.Context, w wire, prefixes []string) (refs map[string]Hash, head string, err error) {
	var b bytes.Buffer
	writePkt(&b, "command=ls-refs\n")
	b.WriteString(delimPkt)
	writePkt(&b, "symrefs\n")
	for _, p := range prefixes {
		writePkt(&b, "ref-prefix %s\n", p)
	}
	b.WriteString(flushPkt)
	body, err := w.call(ctx, uploadPack, true, b.Bytes())
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = body.Close() }()
	p := newPktReader(limit(body, maxAdvertisement, "a list of references"))
	refs = map[string]Hash{}
	for {
		kind, line, err := p.line()
		if err != nil {
			return nil, "", unexpectedEnd(err)
		}
		if kind != pktData {
			return refs, head, nil
		}
		fields := strings.Fields(line)
		if len(fields) < 2 || !plumbing.IsHash(fields[0]) {
			return nil, "", malformed("a list of references with the line %q", clean(line))
		}
		refs[fields[1]] = plumbing.NewHash(fields[0])
		for _, attr := range fields[2:] {
			if t, ok := strings.CutPrefix(attr, "symref-target:refs/heads/"); ok && fields[1] == "HEAD" {
				head = t
			}
		}
	}
}

// fetchQuery is one request for a pack.
type fetchQuery struct {
	wants []Hash
	// have is a commit of which nothing is wanted that it leads to. That little of
	// this is known is not said (shallow): the server would send all of it for the
	// merge of a branch that began before have.
	have Hash
	// thin allows deltas against what have leads to. Those against what is not
	// known are dropped.
	thin bool
	// depth bounds history; 0 does not.
	depth int
	// filter is a filter-spec (git rev-list --filter); empty asks for all.
	filter string
	max    int64
}

// fetch asks for a pack and reads it into sink.
func fetch(ctx context.Context, w wire, pr profile, q fetchQuery, sink packSink) error {
	request := q.encodeV0(pr)
	if pr.v2 {
		request = q.encodeV2()
	}
	body, err := w.call(ctx, uploadPack, pr.v2, request)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	p := newPktReader(limit(body, q.max, "a pack"))
	sb := &sideband{p: p}
	if pr.v2 {
		err = skipSections(p)
	} else {
		sb.pending, err = skipAcks(p)
	}
	if err != nil {
		return err
	}
	if err := readPack(sb, sink); err != nil {
		return &packError{err}
	}
	return nil
}

// packError is a failure within a pack, which the server had begun to send.
type packError struct{ err error }

func (e *packError) Error() string { return e.err.Error() }
func (e *packError) Unwrap() error { return e.err }

// skipSections reads a v2 answer up to its pack.
func skipSections(p *pktReader) error {
	for {
		kind, line, err := p.line()
		switch {
		case err != nil:
			return unexpectedEnd(err)
		case kind == pktFlush:
			return malformed("a fetch without a pack")
		case kind == pktData && line == "packfile":
			return nil
		}
	}
}

// skipAcks reads a v0 answer (shallow and ACK lines) up to its pack, and
// returns the first bytes of that.
func skipAcks(p *pktReader) ([]byte, error) {
	for {
		kind, data, err := p.next()
		switch {
		case err != nil:
			return nil, unexpectedEnd(err)
		case kind != pktData || len(data) == 0:
		case data[0] == 1:
			return data[1:], nil
		case data[0] == 3:
			return nil, &ServerError{Text: clean(string(data[1:]))}
		case data[0] == 2, bytes.HasPrefix(data, []byte("ACK ")), bytes.HasPrefix(data, []byte("NAK")),
			bytes.HasPrefix(data, []byte("shallow ")), bytes.HasPrefix(data, []byte("unshallow ")):
		default:
			return nil, malformed("a fetch with the line %q", clean(string(data)))
		}
	}
}

func (q fetchQuery) encodeV2() []byte {
	var b bytes.Buffer
	writePkt(&b, "command=fetch\n")
	b.WriteString(delimPkt)
	if q.thin {
		writePkt(&b, "thin-pack\n")
	}
	writePkt(&b, "no-progress\n")
	writePkt(&b, "ofs-delta\n")
	for _, id := range q.wants {
		writePkt(&b, "want %s\n", id)
	}
	if q.depth > 0 {
		writePkt(&b, "deepen %d\n", q.depth)
	}
	if q.filter != "" {
		writePkt(&b, "filter %s\n", q.filter)
	}
	if !q.have.IsZero() {
		writePkt(&b, "have %s\n", q.have)
	}
	writePkt(&b, "done\n")
	b.WriteString(flushPkt)
	return b.Bytes()
}

func (q fetchQuery) encodeV0(pr profile) []byte {
	caps := "side-band-64k ofs-delta no-progress agent=" + userAgent
	if q.thin {
		caps = "thin-pack " + caps
	}
	if pr.multiAck {
		caps = "multi_ack " + caps // Azure DevOps refuses requests without
	}
	if q.depth > 0 {
		caps += " shallow"
	}
	if q.filter != "" {
		caps += " filter"
	}
	var b bytes.Buffer
	for i, id := range q.wants {
		if i == 0 {
			writePkt(&b, "want %s %s\n", id, caps)
			continue
		}
		writePkt(&b, "want %s\n", id)
	}
	if q.depth > 0 {
		writePkt(&b, "deepen %d\n", q.depth)
	}
	if q.filter != "" {
		writePkt(&b, "filter %s\n", q.filter)
	}
	b.WriteString(flushPkt)
	if !q.have.IsZero() {
		writePkt(&b, "have %s\n", q.have)
	}
	writePkt(&b, "done\n")
	return b.Bytes()
}

// push sends one reference update with a pack and reads the report. Success is
// a report that names the reference with "ok", and nothing else: an empty
// answer, or one about other references, proves nothing.
func push(ctx context.Context, w wire, ref string, old, tip Hash, objects []Object) error {
	var b bytes.Buffer
	writePkt(&b, "%s %s %s\x00 report-status side-band-64k agent=%s", old, tip, ref, userAgent)
	b.WriteString(flushPkt)
	if err := writePack(&b, objects); err != nil {
		return err
	}
	body, err := w.call(ctx, receivePack, false, b.Bytes())
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	sb := &sideband{p: newPktReader(limit(body, maxReport, "a push report"))}
	return readReport(sb, ref)
}

func readReport(sb *sideband, ref string) error {
	p := newPktReader(sb)
	kind, line, err := p.line()
	if err != nil {
		return unexpectedEnd(err)
	}
	status, ok := strings.CutPrefix(line, "unpack ")
	if kind != pktData || !ok {
		return malformed("a push report that begins with %q", clean(line))
	}
	verdict := malformed("a push report that does not mention %s", ref)
	for {
		kind, line, err := p.line()
		if err != nil {
			return unexpectedEnd(err)
		}
		if kind != pktData {
			break
		}
		word, rest, _ := strings.Cut(line, " ")
		name, reason, _ := strings.Cut(rest, " ")
		if name != ref {
			continue
		}
		switch word {
		case "ok":
			verdict = nil
		case "ng":
			verdict = &RejectedError{Reason: clean(reason)}
		}
	}
	_, _ = io.Copy(io.Discard, sb) // what hooks print may follow the report
	if status != "ok" {
		verdict = &RejectedError{Reason: "unpack: " + clean(status)}
	}
	var rejected *RejectedError
	if errors.As(verdict, &rejected) {
		rejected.Output = clean(sb.output.String())
	}
	return verdict
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the answer of the git server ends too early: %w", io.ErrUnexpectedEOF)
	}
	return err
}
