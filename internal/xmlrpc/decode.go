package xmlrpc

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// DecodeCall decodes a methodCall.
func DecodeCall(b []byte) (method string, params []any, err error) {
	d, err := newDecoder(b)
	if err == nil {
		err = d.open("methodCall")
	}
	if err == nil {
		err = d.open("methodName")
	}
	if err != nil {
		return "", nil, err
	}
	if method, err = d.text("methodName"); err != nil {
		return "", nil, err
	}
	if method = strings.TrimSpace(method); method == "" {
		return "", nil, errors.New("xmlrpc: the call names no method")
	}
	more, err := d.another("params", "methodCall")
	if err != nil || !more {
		return method, nil, errors.Join(err, d.end())
	}
	if params, err = d.params(); err == nil {
		err = d.close("methodCall")
	}
	return method, params, errors.Join(err, d.end())
}

// DecodeReply decodes a methodResponse: a value, or a [*Fault] as the error.
func DecodeReply(b []byte) (any, error) {
	d, err := newDecoder(b)
	if err != nil {
		return nil, err
	}
	if err := d.open("methodResponse"); err != nil {
		return nil, err
	}
	t, err := d.element()
	start, ok := t.(xml.StartElement)
	switch {
	case err != nil:
		return nil, err
	case ok && start.Name.Local == "fault":
		return nil, d.fault()
	case !ok || start.Name.Local != "params":
		return nil, errors.New("xmlrpc: expected params or fault in methodResponse")
	}
	params, err := d.params()
	if err == nil {
		err = errors.Join(d.close("methodResponse"), d.end())
	}
	if err == nil && len(params) != 1 {
		err = fmt.Errorf("xmlrpc: the response has %d values, expected 1", len(params))
	}
	if err != nil {
		return nil, err
	}
	return params[0], nil
}

// A decoder reads one message. depth and values are what it has met.
type decoder struct {
	x      *xml.Decoder
	depth  int
	values int
}

func newDecoder(b []byte) (*decoder, error) {
	if len(b) > SizeMax {
		return nil, fmt.Errorf("xmlrpc: the message has %d bytes, expected at most %d", len(b), SizeMax)
	}
	return &decoder{x: xml.NewDecoder(bytes.NewReader(b))}, nil
}

// token returns the next piece that means something.
func (d *decoder) token() (xml.Token, error) {
	for {
		t, err := d.x.Token()
		if err != nil {
			return nil, fmt.Errorf("xmlrpc: at byte %d: %w", d.x.InputOffset(), err)
		}
		switch t.(type) {
		case xml.Comment, xml.ProcInst:
		case xml.Directive:
			return nil, errors.New("xmlrpc: declarations such as a DOCTYPE are refused")
		default:
			return t, nil
		}
	}
}

// element returns the next beginning or end of an element; between elements there
// is only white space.
func (d *decoder) element() (xml.Token, error) {
	for {
		t, err := d.token()
		if err != nil {
			return nil, err
		}
		text, ok := t.(xml.CharData)
		if !ok {
			return t, nil
		}
		if len(bytes.TrimSpace(text)) > 0 {
			return nil, fmt.Errorf("xmlrpc: at byte %d: text between elements", d.x.InputOffset())
		}
	}
}

// another reports whether an element of that name begins, or parent ends.
func (d *decoder) another(name, parent string) (bool, error) {
	t, err := d.element()
	if err != nil {
		return false, err
	}
	switch e := t.(type) {
	case xml.StartElement:
		if e.Name.Local == name {
			return true, nil
		}
		return false, fmt.Errorf("xmlrpc: at byte %d: found <%s>, expected <%s>", d.x.InputOffset(), e.Name.Local, name)
	case xml.EndElement:
		if e.Name.Local == parent {
			return false, nil
		}
	}
	return false, fmt.Errorf("xmlrpc: at byte %d: expected <%s> or the end of <%s>", d.x.InputOffset(), name, parent)
}

func (d *decoder) open(name string) error {
	more, err := d.another(name, "")
	if err == nil && !more {
		err = fmt.Errorf("xmlrpc: expected <%s>", name)
	}
	return err
}

func (d *decoder) close(name string) error {
	t, err := d.element()
	if err != nil {
		return err
	}
	if e, ok := t.(xml.EndElement); !ok || e.Name.Local != name {
		return fmt.Errorf("xmlrpc: at byte %d: expected the end of <%s>", d.x.InputOffset(), name)
	}
	return nil
}

// end makes sure that nothing follows the message.
func (d *decoder) end() error {
	if _, err := d.element(); !errors.Is(err, io.EOF) {
		return errors.New("xmlrpc: something follows the message")
	}
	return nil
}

// text returns what is in an element that holds text only.
func (d *decoder) text(name string) (string, error) {
	var s strings.Builder
	for {
		t, err := d.token()
		if err != nil {
			return "", err
		}
		switch e := t.(type) {
		case xml.CharData:
			s.Write(e)
		case xml.EndElement:
			return s.String(), nil
		case xml.StartElement:
			return "", fmt.Errorf("xmlrpc: at byte %d: <%s> in <%s>, expected text", d.x.InputOffset(), e.Name.Local, name)
		}
	}
}

// params decodes the parameters up to the end of <params>.
func (d *decoder) params() ([]any, error) {
	var params []any
	for {
		more, err := d.another("param", "params")
		if err != nil || !more {
			return params, err
		}
		v, err := d.valueElement()
		if err == nil {
			err = d.close("param")
		}
		if err != nil {
			return nil, err
		}
		params = append(params, v)
	}
}

func (d *decoder) valueElement() (any, error) {
	if err := d.open("value"); err != nil {
		return nil, err
	}
	return d.value()
}

// value decodes what is in a <value> that has begun, with its end.
func (d *decoder) value() (any, error) {
	if d.values++; d.values > ValuesMax {
		return nil, fmt.Errorf("xmlrpc: more than %d values", ValuesMax)
	}
	var text strings.Builder
	for {
		t, err := d.token()
		if err != nil {
			return nil, err
		}
		switch e := t.(type) {
		case xml.CharData:
			text.Write(e)
		case xml.EndElement: // a value without a type is a string
			return text.String(), nil
		case xml.StartElement:
			if strings.TrimSpace(text.String()) != "" {
				return nil, fmt.Errorf("xmlrpc: at byte %d: text beside <%s>", d.x.InputOffset(), e.Name.Local)
			}
			v, err := d.typed(e.Name.Local)
			if err != nil {
				return nil, err
			}
			return v, d.close("value")
		}
	}
}

// typed decodes an element of a type, with its end.
func (d *decoder) typed(name string) (any, error) {
	switch name {
	case "array", "struct":
		if d.depth++; d.depth > DepthMax {
			return nil, fmt.Errorf("xmlrpc: arrays and structs are more than %d deep in each other", DepthMax)
		}
		defer func() { d.depth-- }()
		if name == "array" {
			return d.array()
		}
		return d.members()
	}
	text, err := d.text(name)
	if err != nil {
		return nil, err
	}
	v, err := scalar(name, text)
	if err != nil {
		return nil, fmt.Errorf("xmlrpc: at byte %d: %w", d.x.InputOffset(), err)
	}
	return v, nil
}

func (d *decoder) array() (any, error) {
	if err := d.open("data"); err != nil {
		return nil, err
	}
	array := []any{}
	for {
		more, err := d.another("value", "data")
		if err != nil {
			return nil, err
		}
		if !more {
			return array, d.close("array")
		}
		v, err := d.value()
		if err != nil {
			return nil, err
		}
		array = append(array, v)
	}
}

func (d *decoder) members() (any, error) {
	members := map[string]any{}
	for {
		more, err := d.another("member", "struct")
		if err != nil || !more {
			return members, err
		}
		if err := d.open("name"); err != nil {
			return nil, err
		}
		name, err := d.text("name")
		if err != nil {
			return nil, err
		}
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("xmlrpc: the struct has two members %q", name)
		}
		if members[name], err = d.valueElement(); err != nil {
			return nil, err
		}
		if err := d.close("member"); err != nil {
			return nil, err
		}
	}
}

// fault decodes what is in a <fault> that has begun.
func (d *decoder) fault() error {
	v, err := d.valueElement()
	if err != nil {
		return err
	}
	m, _ := v.(map[string]any)
	code, isCode := m["faultCode"].(int64)
	message, isMessage := m["faultString"].(string)
	if !isCode || !isMessage {
		return errors.New("xmlrpc: the fault has no faultCode or no faultString")
	}
	return &Fault{int(code), message}
}

// timeLayouts are the forms of dateTime.iso8601 in use.
var timeLayouts = []string{"20060102T15:04:05", "20060102T15:04:05Z07:00", "2006-01-02T15:04:05", time.RFC3339}

// scalar decodes the text of a value that has no others in it.
func scalar(name, text string) (any, error) {
	trimmed := strings.TrimSpace(text)
	switch name {
	case "string":
		return text, nil
	case "int", "i4", "i8":
		if n, err := strconv.ParseInt(trimmed, 10, 64); err == nil {
			return n, nil
		}
	case "boolean":
		if trimmed == "0" || trimmed == "1" {
			return trimmed == "1", nil
		}
	case "double":
		if f, err := strconv.ParseFloat(trimmed, 64); err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
			return f, nil
		}
	case "dateTime.iso8601":
		for _, layout := range timeLayouts {
			if t, err := time.Parse(layout, trimmed); err == nil {
				return t.UTC(), nil
			}
		}
	case "base64":
		if b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), "")); err == nil {
			return b, nil
		}
	case "nil":
		if trimmed == "" {
			return nil, nil
		}
	default:
		return nil, fmt.Errorf("there is no type <%s>", name)
	}
	return nil, fmt.Errorf("%q is no %s", trimmed, name)
}
