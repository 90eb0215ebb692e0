package verbs

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"tidemark/spm"
)

// A Kind is a type of argument: how it is written, and how it is decoded. zero is
// what an optional one is that was not given, and has the type of what is decoded.
// numbers are those of refusals that have another number than their code has.
type Kind struct {
	Type    string
	Doc     string
	zero    any
	decode  func(v any) (any, error)
	numbers []int
}

// kindOf is a kind of values of type T.
func kindOf[T any](name, doc string, zero T, decode func(v any) (T, error)) *Kind {
	return &Kind{Type: name, Doc: doc, zero: zero, decode: func(v any) (any, error) { return decode(v) }}
}

// refusing is a kind whose refusals may have a number of their own.
func (k *Kind) refusing(number int) *Kind {
	k.numbers = append(k.numbers, number)
	return k
}

// kinds are all that there are, in the order of the reference.
var kinds = []*Kind{
	kindUUID, kindNewUUID, kindUUIDs, kindStates, kindString, kindInt, kindBool, kindSize, kindSectors, kindPlace, kindConnections,
	kindDomainType, kindClass, kindVersion, kindFormat, kindFormatOrSame, kindAlloc, kindAllocOrSame, kindVolType,
	kindDiskType, kindOperation, kindIgnored, kindNone, kindTrue,
}

var (
	kindUUID    = kindOf("UUID", "36 characters; all zeros, or an empty string, is the blank one", uuid.Nil, decodeUUID)
	kindNewUUID = kindOf("new UUID", "a UUID that is not blank", uuid.Nil, decodeNewUUID)
	kindUUIDs   = kindOf("UUIDs", "an array of UUIDs that are not blank, or one of them", []uuid.UUID(nil), decodeUUIDs)
	kindStates  = kindOf("states", "an object of Active, Attached or Unknown (which is Attached) by the UUIDs of domains", map[uuid.UUID]spm.DomainState(nil), decodeStates)
	kindString  = kindOf("string", "text", "", decodeString)
	kindInt     = kindOf("integer", "an integer, or a decimal string", int64(0), decodeInt)
	kindBool    = kindOf("boolean", "a boolean, 0 or 1, or the string true or false", false, decodeBool)
	kindSize    = kindOf("bytes", "a number of bytes: a decimal string, or an integer", int64(0), decodeSize)
	kindSectors = kindOf("size", "a decimal string of bytes, or an integer number of 512-byte sectors", int64(0), decodeSectors)
	kindPlace   = kindOf("place", "a string: the directory, or the name of the volume group; or an object with it as remotePath or vgUUID", "", decodePlace)

	kindConnections = kindOf("connections", "an array of objects: id (UUID, may be missing) and connection or path (string: a directory, or devices separated by commas); other members are ignored", []spm.Connection(nil), decodeConnections)

	kindDomainType   = wordKind("domain type", domainTypes, spm.DomainType(""))
	kindClass        = wordKind("domain class", classes, "")
	kindVersion      = kindOf("domain version", "5, or 0, which is the newest", 0, decodeVersion).refusing(394)
	kindFormat       = wordKind("format", formats, "")
	kindFormatOrSame = wordKind("format or UNKNOWN", append(formats, word[string]{number: 0, name: "UNKNOWN", doc: "as it is"}, word[string]{number: 3, name: "UNKNOWN", doc: "the same"}), "")
	kindAlloc        = wordKind("allocation", allocs, "")
	kindAllocOrSame  = wordKind("allocation or UNKNOWN", append(allocs, word[string]{number: 0, name: "UNKNOWN", doc: "as it is"}), "")
	kindVolType      = wordKind("volume type", volTypes, "")
	kindDiskType     = kindOf("disk type", "a word: "+strings.Join(diskTypes, ", ")+"; or a number from 0 to 8, which is DATA", "DATA", decodeDiskType)
	kindOperation    = wordKind("operation", operations, false)
	kindIgnored      = &Kind{Type: "anything", Doc: "is ignored", decode: func(any) (any, error) { return nil, nil }}
	kindNone         = &Kind{Type: "nothing", Doc: "VDSM has it, and we do not: false, 0 or an empty string only", decode: decodeNone}
	kindTrue         = kindOf("true", "VDSM has it false, too, and we do not", true, decodeTrue)
)

func decodeUUID(v any) (uuid.UUID, error) {
	s, ok := v.(string)
	if !ok {
		return uuid.Nil, invalid("expected a UUID, found %s", show(v))
	}
	if s == "" {
		return uuid.Nil, nil
	}
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return uuid.Nil, invalid("expected a UUID of 36 characters, found %s", show(v))
	}
	return id, nil
}

func decodeNewUUID(v any) (uuid.UUID, error) {
	id, err := decodeUUID(v)
	if err == nil && id == uuid.Nil {
		err = invalid("expected a UUID, found the blank one")
	}
	return id, err
}

func decodeUUIDs(v any) ([]uuid.UUID, error) {
	list, ok := v.([]any)
	if _, one := v.(string); one {
		list, ok = []any{v}, true
	}
	if !ok {
		return nil, invalid("expected an array of UUIDs, found %s", show(v))
	}
	ids := make([]uuid.UUID, len(list))
	for i, v := range list {
		id, err := decodeNewUUID(v)
		if err != nil {
			return nil, about(err, fmt.Sprintf("element %d", i))
		}
		ids[i] = id
	}
	return ids, nil
}

func decodeStates(v any) (map[uuid.UUID]spm.DomainState, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, invalid("expected an object of states by the UUIDs of domains, found %s", show(v))
	}
	states := make(map[uuid.UUID]spm.DomainState, len(m))
	for text, v := range m {
		id, err := decodeNewUUID(text)
		if err != nil {
			return nil, about(err, "member "+show(text))
		}
		word, _ := v.(string)
		switch strings.ToLower(word) {
		case "active":
			states[id] = spm.DomainActive
		case "attached", "unknown":
			states[id] = spm.DomainAttached
		default:
			return nil, invalid("domain %s: expected Active, Attached or Unknown, found %s", id, show(v))
		}
	}
	return states, nil
}

func decodeString(v any) (string, error) {
	if s, ok := v.(string); ok {
		return s, nil
	}
	return "", invalid("expected a string, found %s", show(v))
}

func decodeInt(v any) (int64, error) {
	switch v := v.(type) {
	case int64:
		return v, nil
	case string:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return n, nil
		}
	}
	return 0, invalid("expected an integer, found %s", show(v))
}

func decodeBool(v any) (bool, error) {
	switch v := v.(type) {
	case bool:
		return v, nil
	case int64:
		if v == 0 || v == 1 {
			return v == 1, nil
		}
	case string:
		if w := strings.ToLower(v); w == "true" || w == "false" {
			return w == "true", nil
		}
	}
	return false, invalid("expected a boolean, found %s", show(v))
}

func decodeSize(v any) (int64, error) {
	n, err := decodeInt(v)
	if err != nil || n < 0 {
		return 0, invalid("expected a number of bytes, found %s", show(v))
	}
	return n, nil
}

// decodeSectors tells the unit by the type, as VDSM did.
func decodeSectors(v any) (int64, error) {
	n, err := decodeSize(v)
	if err != nil {
		return 0, invalid("expected a decimal string of bytes, or a number of sectors, found %s", show(v))
	}
	if _, bytes := v.(string); bytes {
		return n, nil
	}
	if n > math.MaxInt64/512 {
		return 0, invalid("%v sectors are more than a volume can have", n)
	}
	return n * 512, nil
}

// decodePlace takes VDSM's objects of one member as well.
func decodePlace(v any) (string, error) {
	if m, ok := v.(map[string]any); ok && len(m) == 1 {
		for _, name := range []string{"remotePath", "vgUUID"} {
			if in, ok := m[name]; ok {
				v = in
			}
		}
	}
	if s, ok := v.(string); ok && s != "" {
		return s, nil
	}
	return "", invalid("expected a directory or the name of a volume group, found %s", show(v))
}

func decodeConnections(v any) ([]spm.Connection, error) {
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, invalid("expected an array of connections, found %s", show(v))
	}
	connections := make([]spm.Connection, len(list))
	for i, v := range list {
		c, err := decodeConnection(v)
		if err != nil {
			return nil, about(err, fmt.Sprintf("element %d", i))
		}
		connections[i] = c
	}
	return connections, nil
}

func decodeConnection(v any) (c spm.Connection, err error) {
	m, ok := v.(map[string]any)
	if !ok {
		return c, invalid("expected an object with id and connection, found %s", show(v))
	}
	if in, ok := m["id"]; ok && in != nil {
		id, err := decodeUUID(in)
		if err != nil {
			return c, about(err, "id")
		}
		c.ID = id
	}
	for _, name := range []string{"connection", "path"} {
		if s, ok := m[name].(string); ok && s != "" {
			c.Address = s
			return c, nil
		}
	}
	return c, invalid("expected the member connection, a string that is not empty")
}

func decodeVersion(v any) (int, error) {
	n, err := decodeInt(v)
	if err != nil {
		return 0, err
	}
	if n != 0 && n != 5 {
		return 0, unsupported(394, "expected version 5, or 0, which is the newest, found %v", n)
	}
	return int(n), nil
}

func decodeDiskType(v any) (string, error) {
	if n, err := decodeInt(v); err == nil {
		if n >= 0 && n <= 8 {
			return "DATA", nil
		}
	} else if s, ok := v.(string); ok {
		for _, w := range diskTypes {
			if strings.EqualFold(s, w) {
				return w, nil
			}
		}
	}
	return "", invalid("expected %s, or a number from 0 to 8, found %s", strings.Join(diskTypes, ", "), show(v))
}

// decodeNone takes what means nothing.
func decodeNone(v any) (any, error) {
	switch v {
	case false, int64(0), "", "0", "false", "False":
		return nil, nil
	}
	return nil, unsupported(0, "there is no such thing here, found %s", show(v))
}

func decodeTrue(v any) (bool, error) {
	if b, err := decodeBool(v); err != nil || b {
		return b, err
	}
	return false, unsupported(0, "false is not possible here")
}

// show is a value in an error, cut short.
func show(v any) string {
	var s string
	switch v := v.(type) {
	case string:
		s = strconv.Quote(v)
	case []any:
		s = fmt.Sprintf("an array of %d", len(v))
	case map[string]any:
		s = fmt.Sprintf("an object of %d members", len(v))
	case []byte:
		s = fmt.Sprintf("%d bytes", len(v))
	default:
		s = fmt.Sprint(v)
	}
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return s
}
