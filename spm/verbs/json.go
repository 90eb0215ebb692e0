package verbs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/creachadair/jrpc2"
	"github.com/creachadair/jrpc2/handler"

	"tidemark/spm"
)

// addVerbs adds the verbs, by their names and by VDSM's, to methods. The table has no
// name that one of our own methods has.
func addVerbs(methods handler.Map, s spm.Storage) {
	for i := range Table {
		v := &Table[i]
		methods[v.Name] = verbMethod(v, s)
		for _, m := range v.Methods {
			methods[m.Name] = vdsmMethod(v, m, s)
		}
	}
}

// verbMethod answers with the whole reply.
func verbMethod(v *Verb, s spm.Storage) jrpc2.Handler {
	return func(ctx context.Context, r *jrpc2.Request) (any, error) {
		position, name, err := params(r)
		if err != nil {
			return nil, err
		}
		reply, err := v.Do(ctx, s, position, name)
		if err != nil {
			return nil, jsonError(err)
		}
		return reply, nil
	}
}

// vdsmMethod takes VDSM's parameters and answers with the member that is VDSM's
// result.
func vdsmMethod(v *Verb, m Method, s spm.Storage) jrpc2.Handler {
	names := v.argNames(m)
	return func(ctx context.Context, r *jrpc2.Request) (any, error) {
		position, given, err := params(r)
		if err != nil {
			return nil, err
		}
		named, err := v.rename(m, names, position, given)
		if err != nil {
			return nil, jsonError(v.failure(err))
		}
		reply, err := v.Do(ctx, s, nil, named)
		if err != nil {
			return nil, jsonError(err)
		}
		switch m.Result {
		case "":
			return true, nil
		case "*":
			maps.DeleteFunc(reply, func(name string, _ any) bool { return name == "status" })
			return reply, nil
		}
		return reply[m.Result], nil
	}
}

// A param is a parameter of a method of VDSM, and the argument that it is; "" is
// none, and is ignored.
type param struct{ name, arg string }

// argNames are the parameters of m in order. Each is "name", or "name=arg" where the
// name does not say which argument it is.
func (v *Verb) argNames(m Method) []param {
	var out []param
	for _, text := range strings.Fields(m.Params) {
		name, arg, said := strings.Cut(text, "=")
		if !said {
			arg = v.argOf(name)
		}
		out = append(out, param{name, arg})
	}
	return out
}

// argOf is the argument that a parameter of VDSM's JSON-RPC is by its name, or "".
func (v *Verb) argOf(name string) string {
	for _, n := range append([]string{name}, vdsmNames[name]...) {
		if slices.ContainsFunc(v.Args, func(a Arg) bool { return a.Name == n }) {
			return n
		}
	}
	return ""
}

// vdsmNames are how the older API calls the parameters of the newer one.
var vdsmNames = map[string][]string{
	"storagepoolID": {"spUUID"}, "storagedomainID": {"sdUUID"}, "imageID": {"imgUUID"}, "volumeID": {"volUUID"},
	"masterSdUUID": {"msdUUID", "masterDom"}, "domainType": {"domType", "storageType"}, "connectionParams": {"conList"},
	"typeArgs": {"typeSpecificArg"}, "name": {"domainName", "poolName"}, "domainClass": {"domClass"}, "version": {"domVersion"},
	"domainList": {"domList"}, "domainDict": {"domainsMap"}, "prevLver": {"prevLVER"}, "enableScsiFencing": {"scsiFencing"},
	"volumeList": {"volumes"}, "dstVolFormat": {"volFormat"}, "backing_chain": {"backing"}, "baseID": {"baseUUID"},
}

// rename turns the parameters of a method of VDSM into arguments by name. What only the
// older API has, and nobody looks at, need not be among them.
func (v *Verb) rename(m Method, names []param, position []any, given map[string]any) (map[string]any, error) {
	if len(position) > len(names) {
		return nil, invalid("%s takes at most %d parameters, found %d", m.Name, len(names), len(position))
	}
	out := map[string]any{}
	for _, a := range v.Args {
		if a.Kind == kindIgnored && !a.Optional {
			out[a.Name] = ""
		}
	}
	for i, p := range names {
		value, ok := given[p.name]
		if i < len(position) {
			value, ok = position[i], true
		}
		if ok && p.arg != "" {
			out[p.arg] = value
		}
	}
	for name := range given {
		if !slices.ContainsFunc(names, func(p param) bool { return p.name == name }) {
			return nil, invalid("%s has no parameter %q, expected %s", m.Name, name, m.Params)
		}
	}
	return out, nil
}

// params are the parameters of a request: an array, an object, or nothing.
func params(r *jrpc2.Request) (position []any, name map[string]any, err error) {
	v, err := parseJSON([]byte(r.ParamString()))
	if err != nil {
		return nil, nil, jrpc2.Errorf(jrpc2.InvalidParams, "params: %v", err)
	}
	switch v := v.(type) {
	case []any:
		return v, nil, nil
	case map[string]any:
		return nil, v, nil
	}
	return nil, nil, nil
}

// jsonError is the error object of a verb that has failed.
func jsonError(err error) error {
	var f *Failure
	if !errors.As(err, &f) {
		return err
	}
	return (&jrpc2.Error{Code: jrpc2.Code(f.Number), Message: f.Message}).WithData(spm.ErrorData{Code: f.Code})
}

// parseJSON decodes JSON to the types that arguments are decoded from; nothing is
// nil.
func parseJSON(b []byte) (any, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return plain(v), nil
}

// plain makes numbers of json.Number.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, err := v.Float64()
		if err != nil { // beyond what a number can be: no kind takes it
			return v.String() + " (too large)"
		}
		return f
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = plain(v[name])
		}
	}
	return v
}
