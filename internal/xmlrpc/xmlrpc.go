// Package xmlrpc turns the messages of XML-RPC (xmlrpc.com/spec) into values and
// back. It knows no transport and no method. It has the extensions that clients in
// use rely on: nil, and i8 for integers beyond 32 bits.
//
//	XML-RPC               Go, decoded      Go, to be encoded
//	int, i4, i8           int64            int, int64: as int, beyond 32 bits as i8
//	boolean               bool             bool
//	string, or no type    string           string
//	double                float64          float64, finite
//	dateTime.iso8601      time.Time, UTC   time.Time
//	base64                []byte           []byte
//	array                 []any            []any, []string
//	struct                map[string]any   map[string]any, in the order of the names
//	nil                   nil              nil
//
// What comes in is hostile: its length, depth and number of values are limited,
// declarations of a DTD are refused, and nothing is allocated for more than has
// been read.
package xmlrpc

import "fmt"

// The limits of a message that is decoded.
const (
	SizeMax   = 1 << 20 // bytes; 1,000 UUIDs in an array take 75 KiB
	DepthMax  = 16      // arrays and structs in each other; VDSM's deepest message has 4
	ValuesMax = 20_000  // of all kinds together
)

// A Fault is the answer that no method has given: the request was not understood.
type Fault struct {
	Code    int
	Message string
}

func (f *Fault) Error() string { return fmt.Sprintf("fault %d: %s", f.Code, f.Message) }
