// Package size reads and writes sizes as QEMU and LVM write them: 512, 64k,
// 10G, 1.5T. A suffix is a power of 1024, whatever its case.
package size

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"

	"github.com/dustin/go-humanize"
)

// ErrSyntax: the text is not a size.
var ErrSyntax = errors.New("not a size")

// ErrTooLarge: the size is 8 EiB or more, which no file offset can say.
var ErrTooLarge = errors.New("size too large")

const suffixes = "bkmgtpe" // powers of 1024, from 0

// Parse reads a number, optionally with a fraction, and a suffix: b, k, M, G, T,
// P or E. Without a suffix the unit is one byte. "iB" after a suffix (10GiB) is
// accepted, as go-humanize and LVM print it. What is behind the last whole byte
// of 1.1G is dropped, as QEMU does; a fraction without a larger unit is an error.
func Parse(s string) (int64, error) {
	number, shift, err := split(s)
	if err != nil {
		return 0, err
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, syntax(s)
	}
	r.Mul(r, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift)))
	if r.Cmp(new(big.Rat).SetInt64(math.MaxInt64)) > 0 {
		return 0, fmt.Errorf("%q: %w: the largest is 8E minus one byte", s, ErrTooLarge)
	}
	if shift == 0 && !r.IsInt() {
		return 0, fmt.Errorf("%q: %w: it ends in a fraction of a byte", s, ErrSyntax)
	}
	return new(big.Int).Quo(r.Num(), r.Denom()).Int64(), nil
}

// maxDigits bounds the work on hostile text; 8E has 19 digits, and a fraction
// of 1E has 60 that say something.
const maxDigits = 96

// split checks the text and takes it apart: digits with at most one point, and
// the power of two that the suffix stands for.
func split(s string) (number string, shift uint, err error) {
	if len(s) > maxDigits {
		return "", 0, fmt.Errorf("%q...: %w: more than %d characters", s[:16], ErrSyntax, maxDigits)
	}
	end := strings.IndexFunc(s, func(c rune) bool { return c != '.' && (c < '0' || c > '9') })
	if end < 0 {
		end = len(s)
	}
	number, suffix := s[:end], strings.ToLower(s[end:])
	whole, fraction, point := strings.Cut(number, ".")
	if whole == "" || point && (fraction == "" || strings.Contains(fraction, ".")) {
		return "", 0, syntax(s)
	}
	if suffix == "" {
		return number, 0, nil
	}
	power := strings.IndexByte(suffixes, suffix[0])
	if rest := suffix[1:]; power < 0 || rest != "" && (rest != "ib" || power == 0) {
		return "", 0, syntax(s)
	}
	return number, 10 * uint(power), nil
}

func syntax(s string) error {
	return fmt.Errorf("%q: %w: expected a number and one of b, k, M, G, T, P, E (powers of 1024), such as 512, 64k, 1.5T", s, ErrSyntax)
}

// Format writes a size for people: "1.5 GiB". It rounds; what programs read is
// the number of bytes.
func Format(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}
