package gitrepo

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// pktKind tells data packets from the special ones (gitprotocol-v2,
// "Packet-Line Framing").
type pktKind int

const (
	pktData pktKind = iota
	pktFlush
	pktDelim
	pktEnd
)

// pktReader reads pkt-lines. go-git's scanner knows no delimiter packets,
// which protocol v2 needs.
type pktReader struct {
	r      *bufio.Reader
	length [4]byte
	buf    []byte // grows with the packets; most are short
}

// maxPkt is the largest packet, its length included.
const maxPkt = 65520

func newPktReader(r io.Reader) *pktReader { return &pktReader{r: bufio.NewReaderSize(r, 4096)} }

// next returns the next packet. Data is valid until the following call. An
// "ERR" packet is a *ServerError.
func (p *pktReader) next() (pktKind, []byte, error) {
	if _, err := io.ReadFull(p.r, p.length[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = malformed("it ends inside a packet length")
		}
		return 0, nil, err
	}
	n, err := strconv.ParseUint(string(p.length[:]), 16, 16)
	if err != nil {
		return 0, nil, malformed("packet length %q", p.length)
	}
	switch {
	case n == 0:
		return pktFlush, nil, nil
	case n == 1:
		return pktDelim, nil, nil
	case n == 2:
		return pktEnd, nil, nil
	case n < 4 || n > maxPkt:
		return 0, nil, malformed("packet length %d", n)
	}
	p.buf = slices.Grow(p.buf[:0], int(n-4))
	data := p.buf[:n-4]
	if _, err := io.ReadFull(p.r, data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, fmt.Errorf("cannot read a packet: %w", err)
	}
	if text, ok := bytes.CutPrefix(data, []byte("ERR ")); ok {
		return 0, nil, &ServerError{Text: clean(string(text))}
	}
	return pktData, data, nil
}

// line is next without the final newline of text packets.
func (p *pktReader) line() (pktKind, string, error) {
	kind, data, err := p.next()
	return kind, string(bytes.TrimSuffix(data, []byte("\n"))), err
}

func writePkt(b *bytes.Buffer, format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	fmt.Fprintf(b, "%04x%s", len(s)+4, s)
}

const (
	flushPkt = "0000"
	delimPkt = "0001"
)

// sideband reads channel 1 of a multiplexed stream and keeps the beginning of
// channel 2, where hooks print.
type sideband struct {
	p       *pktReader
	pending []byte
	output  bytes.Buffer
	ended   bool
}

const maxHookOutput = 4 << 10

// Read implements io.Reader.
func (s *sideband) Read(b []byte) (int, error) {
	for len(s.pending) == 0 {
		if s.ended {
			return 0, io.EOF
		}
		kind, data, err := s.p.next()
		if errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("the answer ends too early: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return 0, err
		}
		if kind != pktData {
			s.ended = true
			continue
		}
		if len(data) == 0 {
			return 0, malformed("an empty side-band packet")
		}
		switch data[0] {
		case 1:
			s.pending = data[1:]
		case 2:
			if room := maxHookOutput - s.output.Len(); room > 0 {
				s.output.Write(data[1:min(len(data), room+1)])
			}
		case 3:
			return 0, &ServerError{Text: clean(string(data[1:]))}
		default:
			return 0, malformed("side-band channel %d", data[0])
		}
	}
	n := copy(b, s.pending)
	s.pending = s.pending[n:]
	return n, nil
}

// limitReader fails, rather than ending, when more than n bytes are read.
type limitReader struct {
	r    io.Reader
	n    int64
	what string
	max  int64
}

func limit(r io.Reader, n int64, what string) io.Reader {
	return &limitReader{r: r, n: n, what: what, max: n}
}

func (l *limitReader) Read(p []byte) (int, error) {
	if l.n <= 0 {
		return 0, &LimitError{What: l.what, Limit: l.max}
	}
	if int64(len(p)) > l.n {
		p = p[:l.n]
	}
	n, err := l.r.Read(p)
	l.n -= int64(n)
	return n, err
}
