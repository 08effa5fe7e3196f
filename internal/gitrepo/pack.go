package gitrepo

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1" //nolint:gosec // Git's pack trailer is a SHA-1 checksum
	"encoding/binary"
	"fmt"
	"io"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

// Limits on what a pack may hold. A tree of 100,000 entries is about 4 MiB.
const (
	maxObjects    = 4 << 20
	maxObjectSize = 32 << 20
	maxBlobSize   = 4 << 20
)

// packSink says what to do with the objects of a pack.
type packSink struct {
	// add receives the objects in an order in which bases come first.
	add func(Object) error
	// base finds trees that a thin pack's deltas refer to.
	base func(Hash) (Object, bool)
	// blobs tells to keep blobs, too.
	blobs bool
	// budget bounds the memory for objects, in bytes.
	budget int
}

// readPack reads a pack in one pass. It is lenient where a partial fetch needs
// it to be: a delta against an object that is neither in the pack nor known is
// dropped, because its result was not asked for; what is then missing is
// fetched by id.
func readPack(r io.Reader, sink packSink) error {
	scan := packfile.NewScanner(r)
	_, count, err := scan.Header()
	if err != nil {
		return fmt.Errorf("cannot read the pack: %w", err)
	}
	if count > maxObjects {
		return &LimitError{What: "a pack", Limit: maxObjects}
	}
	p := packReader{packSink: sink, byOffset: map[int64]*Object{}, skipped: map[int64]bool{}, byID: map[Hash]*Object{}}
	for range count {
		if err := p.next(scan); err != nil {
			return err
		}
	}
	if err := p.resolve(); err != nil {
		return err
	}
	if _, err := scan.Checksum(); err != nil {
		return fmt.Errorf("cannot read the pack: %w", err)
	}
	return nil
}

type packReader struct {
	packSink
	byOffset map[int64]*Object
	byID     map[Hash]*Object
	// skipped are the offsets of blobs that are not kept, and of deltas
	// against them.
	skipped map[int64]bool
	// pending are deltas against objects by id that have not been seen yet.
	pending []refDelta
}

type refDelta struct {
	offset int64
	base   Hash
	delta  []byte
}

func (p *packReader) next(scan *packfile.Scanner) error {
	h, err := scan.NextObjectHeader()
	if err != nil {
		return fmt.Errorf("cannot read the pack: %w", err)
	}
	skip := h.Type == plumbing.TagObject || h.Type == plumbing.BlobObject && (!p.blobs || h.Length > maxBlobSize) ||
		h.Type == plumbing.OFSDeltaObject && p.skipped[h.OffsetReference]
	if skip {
		p.skipped[h.Offset] = true
		return nil // the scanner discards it
	}
	if h.Length > maxObjectSize {
		return &LimitError{What: "an object", Limit: maxObjectSize}
	}
	var buf bytes.Buffer
	if _, _, err := scan.NextObject(&buf); err != nil {
		return fmt.Errorf("cannot read the pack: %w", err)
	}
	if int64(buf.Len()) != h.Length {
		return malformed("a packed object of %d bytes claims %d", buf.Len(), h.Length)
	}
	switch h.Type {
	case plumbing.CommitObject, plumbing.TreeObject, plumbing.BlobObject:
		return p.keep(h.Offset, newObject(h.Type, buf.Bytes()))
	case plumbing.OFSDeltaObject:
		base, ok := p.byOffset[h.OffsetReference]
		if !ok { // its base is itself an unresolved delta
			p.skipped[h.Offset] = true
			return nil
		}
		return p.patch(h.Offset, base, buf.Bytes())
	case plumbing.REFDeltaObject:
		if base, ok := p.find(h.Reference); ok {
			return p.patch(h.Offset, base, buf.Bytes())
		}
		if p.budget -= buf.Len(); p.budget < 0 {
			return &LimitError{What: "a pack", Limit: maxObjectSize}
		}
		p.pending = append(p.pending, refDelta{h.Offset, h.Reference, bytes.Clone(buf.Bytes())})
		return nil
	}
	return malformed("object type %d in a pack", h.Type)
}

// resolve applies the pending deltas whose bases came later; the others are
// dropped.
func (p *packReader) resolve() error {
	for progress := true; progress; {
		progress = false
		rest := p.pending[:0]
		for _, d := range p.pending {
			base, ok := p.find(d.base)
			if !ok {
				rest = append(rest, d)
				continue
			}
			if err := p.patch(d.offset, base, d.delta); err != nil {
				return err
			}
			progress = true
		}
		p.pending = rest
	}
	return nil
}

func (p *packReader) find(id Hash) (*Object, bool) {
	if o, ok := p.byID[id]; ok {
		return o, true
	}
	if p.base == nil {
		return nil, false
	}
	o, ok := p.base(id)
	return &o, ok
}

func (p *packReader) patch(offset int64, base *Object, delta []byte) error {
	if size := deltaTargetSize(delta); size > maxObjectSize {
		return &LimitError{What: "an object", Limit: maxObjectSize}
	}
	data, err := packfile.PatchDelta(base.Data, delta)
	if err != nil {
		return fmt.Errorf("cannot read the pack: %w", err)
	}
	return p.keep(offset, newObject(base.Type, data))
}

func (p *packReader) keep(offset int64, o Object) error {
	if p.budget -= len(o.Data); p.budget < 0 {
		return &LimitError{What: "a pack", Limit: int64(maxObjectSize)}
	}
	p.byOffset[offset] = &o
	p.byID[o.ID] = &o
	return p.add(o)
}

// deltaTargetSize reads the second size of a delta's header.
func deltaTargetSize(delta []byte) uint64 {
	_, n := binary.Uvarint(delta)
	if n <= 0 {
		return 0
	}
	size, _ := binary.Uvarint(delta[n:])
	return size
}

// packed is an object as it stands in a pack.
type packed struct {
	typ  plumbing.ObjectType
	base []byte // id of the delta's base
	data []byte
}

// writePack writes a thin pack: trees as deltas against the trees they were
// made from, when that is shorter.
func writePack(w *bytes.Buffer, objects []Object) error {
	entries := make([]packed, len(objects))
	size := 0
	for i, o := range objects {
		entries[i] = pack(o)
		size += len(entries[i].data)
	}
	z, err := zlib.NewWriterLevel(w, level(size)) // one for all: each would allocate most of a megabyte
	if err != nil {
		return fmt.Errorf("cannot compress objects: %w", err)
	}
	start := w.Len()
	w.WriteString("PACK")
	_ = binary.Write(w, binary.BigEndian, []uint32{2, uint32(len(objects))}) //nolint:gosec // bounded by the caller's memory; a Buffer does not fail
	for _, e := range entries {
		writeObjectHeader(w, e.typ, len(e.data))
		w.Write(e.base)
		z.Reset(w)
		if _, err := z.Write(e.data); err != nil {
			return fmt.Errorf("cannot compress an object: %w", err)
		}
		if err := z.Close(); err != nil {
			return fmt.Errorf("cannot compress an object: %w", err)
		}
	}
	sum := sha1.Sum(w.Bytes()[start:]) //nolint:gosec // see the import
	w.Write(sum[:])
	return nil
}

// pack chooses between an object and its delta.
func pack(o Object) packed {
	if o.base != nil && len(o.Data) > 64 {
		if delta := packfile.DiffDelta(o.base.Data, o.Data); len(delta) < len(o.Data)/2 {
			return packed{plumbing.REFDeltaObject, o.base.ID[:], delta}
		}
	}
	return packed{typ: o.Type, data: o.Data}
}

// smallPack is the size up to which compressing well costs more than it saves:
// the tables for it are half a megabyte of memory to be brought in, and a few
// kilobytes come out nearly the same.
const smallPack = 64 << 10

func level(size int) int {
	if size <= smallPack {
		return zlib.BestSpeed
	}
	return zlib.DefaultCompression
}

// writeObjectHeader writes type and size (gitformat-pack, "object entries").
func writeObjectHeader(w *bytes.Buffer, t plumbing.ObjectType, size int) {
	b := byte(t)<<4 | byte(size&0x0f)
	for size >>= 4; size > 0; size >>= 7 {
		w.WriteByte(b | 0x80)
		b = byte(size & 0x7f)
	}
	w.WriteByte(b)
}
