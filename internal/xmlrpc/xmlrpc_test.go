package xmlrpc_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/internal/xmlrpc"
)

// everything has a value of each type.
func everything() map[string]any {
	return map[string]any{
		"int": int64(-5), "long": int64(1) << 40, "yes": true, "no": false,
		"text": "a <b> & \"c\"\r\n\tü 磁", "empty": "", "blank": " x ", "real": 0.1, "none": nil,
		"when": time.Date(2026, 11, 26, 14, 0, 1, 0, time.UTC), "bytes": []byte{0, 255, 7},
		"list": []any{int64(1), "2", []any{}}, "struct": map[string]any{"a": map[string]any{}},
	}
}

func TestWhatIsEncodedDecodes(t *testing.T) {
	b, err := xmlrpc.EncodeCall("do & die", "x", everything())
	require.NoError(t, err)
	method, params, err := xmlrpc.DecodeCall(b)
	require.NoError(t, err)
	require.Equal(t, "do & die", method)
	require.Equal(t, []any{"x", everything()}, params)

	b, err = xmlrpc.EncodeReply(everything())
	require.NoError(t, err)
	v, err := xmlrpc.DecodeReply(b)
	require.NoError(t, err)
	require.Equal(t, everything(), v)

	_, err = xmlrpc.DecodeReply(xmlrpc.EncodeFault(&xmlrpc.Fault{Code: 3, Message: "<why>"}))
	require.Equal(t, &xmlrpc.Fault{Code: 3, Message: "<why>"}, err)
}

// Python's own library reads what we write and writes what we read.
func TestPythonAgrees(t *testing.T) {
	python := testenv.Python(t)
	values := everything()
	values["text"] = "a <b> & \"c\"\n\tü 磁" // Python writes \r as it is, and XML makes \n of it
	b, err := xmlrpc.EncodeReply(values)
	require.NoError(t, err)
	script := `import sys, xmlrpc.client as x
v, _ = x.loads(sys.stdin.buffer.read(), use_builtin_types=True)
v[0]["long"] = -5
sys.stdout.buffer.write(x.dumps((v[0],), "echo", allow_none=True).encode())`
	c := exec.Command(python, "-c", script)
	c.Stdin = bytes.NewReader(b)
	out, err := c.Output()
	require.NoError(t, err)
	method, params, err := xmlrpc.DecodeCall(out)
	require.NoError(t, err)
	values["long"] = int64(-5)
	require.Equal(t, "echo", method)
	require.Equal(t, []any{values}, params)
}

func TestNoEncoding(t *testing.T) {
	for _, v := range []any{struct{}{}, []any{make(chan int)}, map[string]any{"a": uint8(1)}} {
		_, err := xmlrpc.EncodeReply(v)
		require.ErrorContains(t, err, "has no encoding")
	}
}

// call wraps the text of parameters.
func call(params string) string {
	return "<methodCall><methodName>m</methodName><params>" + params + "</params></methodCall>"
}

func value(v string) string { return call("<param><value>" + v + "</value></param>") }

func TestUntyped(t *testing.T) {
	for text, want := range map[string]any{
		value(" a &lt;b "):       " a <b ",
		value(""):                "",
		value(" <int> 7 </int>"): int64(7),
		value("<nil/>"):          nil,
		value("<dateTime.iso8601>2026-11-26T14:00:00+01:00</dateTime.iso8601>"): time.Date(2026, 11, 26, 13, 0, 0, 0, time.UTC),
	} {
		_, params, err := xmlrpc.DecodeCall([]byte(text))
		require.NoError(t, err, text)
		require.Equal(t, []any{want}, params, text)
	}
	for _, text := range []string{"<methodCall><methodName>m</methodName></methodCall>", call("")} {
		_, params, err := xmlrpc.DecodeCall([]byte("<?xml version='1.0'?>\n<!-- x -->" + text + "\n"))
		require.NoError(t, err, text)
		require.Empty(t, params)
	}
}

func TestRefused(t *testing.T) {
	deep := strings.Repeat("<value><array><data>", 17) + strings.Repeat("</data></array></value>", 17)
	for text, why := range map[string]string{
		"":                  "EOF",
		"junk":              "text between elements",
		"<methodCall>":      "EOF",
		"<methodResponse/>": "expected <methodCall>",
		"<methodCall><methodName> </methodName></methodCall>":    "names no method",
		"<methodCall><methodName><b/></methodName></methodCall>": "expected text",
		"<!DOCTYPE a [<!ENTITY b 'c'>]>" + call(""):              "DOCTYPE",
		value("&b;"):                                    "invalid character entity",
		value("<int>7.5</int>"):                         `"7.5" is no int`,
		value("<int>99999999999999999999</int>"):        "is no int",
		value("<boolean>true</boolean>"):                "is no boolean",
		value("<double>inf</double>"):                   "is no double",
		value("<double>nan</double>"):                   "is no double",
		value("<base64>!</base64>"):                     "is no base64",
		value("<dateTime.iso8601>x</dateTime.iso8601>"): "is no dateTime",
		value("<nil>x</nil>"):                           "is no nil",
		value("<set/>"):                                 "there is no type <set>",
		value("x<int>1</int>"):                          "text beside <int>",
		value("<int>1</int>x"):                          "text between elements",
		value("<int>1</int><int>2</int>"):               "expected the end of <value>",
		value("<array></array>"):                        "expected <data>",
		value("<array><data/><data/></array>"):          "expected the end of <array>",
		value("<struct><value/></struct>"):              "expected <member>",
		value("<struct><member><name>a</name><value/></member><member><name>a</name><value/></member></struct>"): "two members",
		call("<param>" + deep + "</param>"):   "more than 16 deep",
		call("") + "<x/>":                     "something follows",
		call("<param></param>"):               "expected <value>",
		call("x"):                             "text between elements",
		strings.Repeat(" ", xmlrpc.SizeMax+1): "bytes, expected at most",
	} {
		_, _, err := xmlrpc.DecodeCall([]byte(text))
		require.ErrorContains(t, err, why, "%.80s", text)
	}
	many := value("<array><data>" + strings.Repeat("<value/>", xmlrpc.ValuesMax) + "</data></array>")
	_, _, err := xmlrpc.DecodeCall([]byte(many))
	require.ErrorContains(t, err, "more than 20000 values")
	for text, why := range map[string]string{
		"<methodResponse><params/></methodResponse>":               "0 values, expected 1",
		"<methodResponse><fault><value/></fault></methodResponse>": "no faultCode",
		"<methodResponse/>": "expected params or fault",
	} {
		_, err := xmlrpc.DecodeReply([]byte(text))
		require.ErrorContains(t, err, why, text)
	}
}

// Whatever comes in, the decoder answers, and what it accepts means the same when
// it has been encoded again.
func FuzzDecodeCall(f *testing.F) {
	b, err := xmlrpc.EncodeCall("m", everything(), "x")
	require.NoError(f, err)
	f.Add(b)
	for _, v := range []string{"", "<int>1</int>", "<array><data><value/></data></array>", "<struct></struct>", "&#x1;"} {
		f.Add([]byte(value(v)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		method, params, err := xmlrpc.DecodeCall(b)
		if err != nil {
			return
		}
		again, err := xmlrpc.EncodeCall(method, params...)
		require.NoError(t, err)
		if len(again) > xmlrpc.SizeMax {
			return
		}
		m2, p2, err := xmlrpc.DecodeCall(again)
		require.NoError(t, err, "%s", again)
		require.Equal(t, method, m2)
		require.Equal(t, fmt.Sprint(params), fmt.Sprint(p2))
	})
}
