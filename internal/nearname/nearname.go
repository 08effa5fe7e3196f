// Package nearname finds the names a user may have meant, for error messages
// that point at a misspelt field or key. It ranks names only; wording the
// message belongs to the caller.
package nearname

import (
	"sort"
	"strings"
	"unicode/utf8"
)

// Nearest returns at most limit of the candidates that resemble name, best
// first, ties in alphabetical order. A candidate resembles name if few edits
// (letter case aside) separate them, or if they share a long beginning, so
// that desiredCommit finds desiredRevision.
func Nearest(name string, candidates []string, limit int) []string {
	type scored struct {
		name string
		cost int
	}
	seen := map[string]bool{name: true}
	var found []scored
	for _, c := range candidates {
		if seen[c] {
			continue
		}
		seen[c] = true
		if cost, ok := resemblance(strings.ToLower(name), strings.ToLower(c)); ok {
			found = append(found, scored{c, cost})
		}
	}
	sort.Slice(found, func(i, j int) bool {
		if found[i].cost != found[j].cost {
			return found[i].cost < found[j].cost
		}
		return found[i].name < found[j].name
	})
	names := make([]string, 0, limit)
	for _, f := range found {
		if len(names) == limit {
			break
		}
		names = append(names, f.name)
	}
	return names
}

// maxLength bounds the work for names out of hostile documents.
const maxLength = 256

func resemblance(a, b string) (cost int, ok bool) {
	if len(a) > maxLength || len(b) > maxLength {
		return 0, false
	}
	d := distance(a, b)
	la, lb := utf8.RuneCountInString(a), utf8.RuneCountInString(b)
	if longer := max(la, lb); d < longer && d <= max(1, longer/3) { // as many edits as letters is another word
		return d, true
	}
	prefix := 0
	for prefix < min(len(a), len(b)) && a[prefix] == b[prefix] {
		prefix++
	}
	if prefix >= 4 && prefix*2 >= min(la, lb) {
		return d + maxLength, true // after all near misses
	}
	return 0, false
}

// distance is the optimal string alignment distance: insertions, deletions,
// substitutions and swaps of neighbours cost 1 each.
func distance(a, b string) int {
	ra, rb := []rune(a), []rune(b)
	prev2 := make([]int, len(rb)+1)
	prev := make([]int, len(rb)+1)
	cur := make([]int, len(rb)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(ra); i++ {
		cur[0] = i
		for j := 1; j <= len(rb); j++ {
			sub := 1
			if ra[i-1] == rb[j-1] {
				sub = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+sub)
			if i > 1 && j > 1 && ra[i-1] == rb[j-2] && ra[i-2] == rb[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(rb)]
}
