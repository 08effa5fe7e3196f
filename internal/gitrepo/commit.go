package gitrepo

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

const (
	treeObject = plumbing.TreeObject
	blobObject = plumbing.BlobObject
)

// Signature names who made a commit, and when.
type Signature struct {
	Name, Email string
	When        time.Time
}

// Signer signs the bytes of a commit object and returns an armored signature,
// OpenPGP or SSH.
type Signer interface {
	Sign(message []byte, at time.Time) (string, error)
}

// CommitSpec is what a commit says besides its tree.
type CommitSpec struct {
	Author, Committer Signature
	// Message is the whole message, trailers included.
	Message string
	// Signer, if not nil, signs the commit.
	Signer Signer
}

// NewCommitOn builds one commit on parent (nothing for the first commit of a
// branch) that makes the changes. It returns the trees of the new commit, to
// build the next one on. The same arguments give the same commit, unless the
// signer is not deterministic.
func NewCommitOn(parent *Trees, changes []Change, spec CommitSpec) (NewCommit, *Trees, error) {
	next, objects, root := parent.Apply(changes)
	c := &Commit{Tree: root, When: spec.Committer.When.UTC().Truncate(time.Second), Author: spec.Author.Name, Message: spec.Message}
	var head bytes.Buffer
	fmt.Fprintf(&head, "tree %s\n", root)
	if parent.commit != nil {
		c.Parents = []Hash{parent.commit.ID}
		fmt.Fprintf(&head, "parent %s\n", parent.commit.ID)
	}
	fmt.Fprintf(&head, "author %s\ncommitter %s\n", spec.Author, spec.Committer)
	body := "\n" + spec.Message
	if spec.Signer != nil {
		sig, err := spec.Signer.Sign([]byte(head.String()+body), spec.Committer.When)
		if err != nil {
			return NewCommit{}, nil, fmt.Errorf("cannot sign the commit: %w", err)
		}
		// gitformat-signature: continuation lines begin with a space.
		fmt.Fprintf(&head, "gpgsig %s\n", strings.ReplaceAll(strings.TrimSuffix(sig, "\n"), "\n", "\n "))
	}
	o := newObject(plumbing.CommitObject, []byte(head.String()+body))
	c.ID = o.ID
	objects = append([]Object{o}, objects...)
	return NewCommit{Commit: c, Parent: parent, Changes: changes, Objects: objects}, next.at(c), nil
}

// String is the form in a commit object. Characters that would end the field
// are dropped, as git does (ident.c).
func (s Signature) String() string {
	return fmt.Sprintf("%s <%s> %d +0000", identField(s.Name), identField(s.Email), s.When.Unix())
}

// Nameless tells whether nothing of the name is left in the commit object. Git
// refuses to commit then (ident.c).
func (s Signature) Nameless() bool { return identField(s.Name) == "" }

func identField(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == '<' || r == '>' {
			return -1
		}
		return r
	}, s)
	return strings.Trim(s, " .,:;\"'\\")
}
