package xmlrpc

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"
)

// header begins every message.
const header = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"

// EncodeCall encodes a methodCall.
func EncodeCall(method string, params ...any) ([]byte, error) {
	e := encoder{}
	e.b.WriteString(header + "<methodCall><methodName>")
	e.text(method)
	e.b.WriteString("</methodName>")
	err := e.params(params)
	e.b.WriteString("</methodCall>\n")
	return e.b.Bytes(), err
}

// EncodeReply encodes the methodResponse with a value.
func EncodeReply(v any) ([]byte, error) {
	e := encoder{}
	e.b.WriteString(header + "<methodResponse>")
	err := e.params([]any{v})
	e.b.WriteString("</methodResponse>\n")
	return e.b.Bytes(), err
}

// EncodeFault encodes the methodResponse with a fault.
func EncodeFault(f *Fault) []byte {
	e := encoder{}
	e.b.WriteString(header + "<methodResponse><fault>")
	e.value(map[string]any{"faultCode": f.Code, "faultString": f.Message}) //nolint:errcheck // both have an encoding
	e.b.WriteString("</fault></methodResponse>\n")
	return e.b.Bytes()
}

type encoder struct{ b bytes.Buffer }

// text writes s with what has a meaning in XML escaped; what XML 1.0 cannot carry
// becomes U+FFFD.
func (e *encoder) text(s string) {
	xml.EscapeText(&e.b, []byte(s)) //nolint:errcheck // a buffer takes everything
}

func (e *encoder) scalar(name, s string) {
	e.b.WriteString("<" + name + ">")
	e.text(s)
	e.b.WriteString("</" + name + ">")
}

func (e *encoder) params(params []any) error {
	e.b.WriteString("<params>")
	for _, p := range params {
		e.b.WriteString("<param>")
		if err := e.value(p); err != nil {
			return err
		}
		e.b.WriteString("</param>")
	}
	e.b.WriteString("</params>")
	return nil
}

func (e *encoder) value(v any) error {
	e.b.WriteString("<value>")
	defer e.b.WriteString("</value>")
	switch v := v.(type) {
	case nil:
		e.b.WriteString("<nil/>")
	case bool:
		e.scalar("boolean", map[bool]string{true: "1", false: "0"}[v])
	case int:
		e.integer(int64(v))
	case int64:
		e.integer(v)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("xmlrpc: %v has no encoding", v)
		}
		e.scalar("double", strconv.FormatFloat(v, 'f', -1, 64))
	case string:
		e.scalar("string", v)
	case time.Time:
		e.scalar("dateTime.iso8601", v.UTC().Format(timeLayouts[0]))
	case []byte:
		e.scalar("base64", base64.StdEncoding.EncodeToString(v))
	case []string:
		return array(e, v)
	case []any:
		return array(e, v)
	case map[string]any:
		return e.members(v)
	default:
		return fmt.Errorf("xmlrpc: a %T has no encoding", v)
	}
	return nil
}

func (e *encoder) integer(n int64) {
	name := "int"
	if n != int64(int32(n)) {
		name = "i8"
	}
	e.scalar(name, strconv.FormatInt(n, 10))
}

func array[T any](e *encoder, values []T) error {
	e.b.WriteString("<array><data>")
	for _, v := range values {
		if err := e.value(v); err != nil {
			return err
		}
	}
	e.b.WriteString("</data></array>")
	return nil
}

func (e *encoder) members(m map[string]any) error {
	e.b.WriteString("<struct>")
	for _, name := range slices.Sorted(maps.Keys(m)) {
		e.b.WriteString("<member>")
		e.scalar("name", name)
		if err := e.value(m[name]); err != nil {
			return err
		}
		e.b.WriteString("</member>")
	}
	e.b.WriteString("</struct>")
	return nil
}
