package verbs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/spm"
)

// A Verb is something that the storage can be asked.
type Verb struct {
	Name    string
	Doc     string
	VDSM    bool     // VDSM has it: else it is our own
	Methods []Method // its names in VDSM's JSON-RPC
	Args    []Arg
	Reply   []Member
	// Codes are those of its errors, beside the ones that every verb has.
	Codes []spm.Code
	// As are the numbers of codes that VDSM has a number for in this verb only, and Also
	// those that it has for one of the reasons of a code, beside that of the code.
	As   map[spm.Code]int
	Also []int
	call func(ctx context.Context, s spm.Storage, a args) (Reply, error)
}

// Lists reports whether a code is among the errors of the verb, or of those that every
// verb has.
func (v *Verb) Lists(c spm.Code) bool {
	return slices.Contains(v.Codes, c) || slices.Contains(everywhere, c)
}

// A Method is a verb as VDSM's JSON-RPC has it: the names of its parameters, in its
// order, and the member of the reply that is its result; "" is true, and "*" all.
type Method struct {
	Name   string
	Params string
	Result string
}

// An Arg is an argument of a verb.
type Arg struct {
	Name     string
	Kind     *Kind
	Optional bool
	Default  any // decoded; nil: the kind's
	Doc      string
}

// A Member is a member of a reply.
type Member struct{ Name, Doc string }

// A Reply is what a verb answers, of the types that package xmlrpc encodes.
type Reply = map[string]any

// args are decoded arguments by their names: of every argument that the verb has.
type args map[string]any

// get is an argument whose kind decodes to T.
func get[T any](a args, name string) T {
	v, ok := a[name].(T)
	if !ok {
		panic(fmt.Sprintf("verbs: argument %s is a %T, not a %T", name, a[name], v))
	}
	return v
}

// done is the status of a reply.
var done = Reply{"code": 0, "message": "OK"}

// Do decodes the arguments, by position or by name, and asks s. An error is a
// [*Failure].
func (v *Verb) Do(ctx context.Context, s spm.Storage, position []any, name map[string]any) (Reply, error) {
	a, err := v.decode(position, name)
	if err != nil {
		return nil, v.failure(err)
	}
	r, err := v.call(ctx, s, a)
	if err != nil {
		return nil, v.failure(err)
	}
	if r == nil {
		r = Reply{}
	}
	r["status"] = done
	return r, nil
}

// decode checks and decodes arguments.
func (v *Verb) decode(position []any, name map[string]any) (args, error) {
	if len(position) > len(v.Args) {
		return nil, invalid("found %d arguments, expected at most %d: %s", len(position), len(v.Args), v.signature())
	}
	for n := range name {
		if !slices.ContainsFunc(v.Args, func(a Arg) bool { return a.Name == n }) {
			return nil, invalid("there is no argument %q, expected %s", n, v.signature())
		}
	}
	a := make(args, len(v.Args))
	for i := range v.Args {
		given := name[v.Args[i].Name]
		if i < len(position) {
			given = position[i]
		}
		var err error
		if a[v.Args[i].Name], err = v.Args[i].decode(given); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// decode decodes one argument; nil is one that is not given.
func (a *Arg) decode(given any) (any, error) {
	if given != nil {
		v, err := a.Kind.decode(given)
		if err != nil {
			return nil, about(err, "argument "+a.Name)
		}
		return v, nil
	}
	switch {
	case !a.Optional:
		return nil, invalid("argument %s is missing, expected %s", a.Name, a.Kind.Type)
	case a.Default != nil:
		return a.Default, nil
	}
	return a.Kind.zero, nil
}

// signature is how a verb is called, for people.
func (v *Verb) signature() string {
	var s strings.Builder
	optional := 0
	for i, a := range v.Args {
		if a.Optional {
			s.WriteByte('[')
			optional++
		}
		if i > 0 {
			s.WriteString(", ")
		}
		s.WriteString(a.Name)
	}
	return v.Name + "(" + s.String() + strings.Repeat("]", optional) + ")"
}

// A Failure is the answer of a verb that has failed.
type Failure struct {
	Number  int      // VDSM's, or ours
	Code    spm.Code // ours
	Message string
}

func (f *Failure) Error() string { return f.Message }

// failure gives an error of the edge or of the storage the number that it has in
// this verb.
func (v *Verb) failure(err error) *Failure {
	f := &Failure{Code: spm.CodeOf(err), Message: v.Name + ": " + strings.TrimPrefix(err.Error(), v.Name+": ")}
	var e *refusal
	if errors.As(err, &e) && e.number != 0 {
		f.Number = e.number
		return f
	}
	f.Number = v.number(f.Code)
	return f
}

// number is that of a code in the verb.
func (v *Verb) number(code spm.Code) int {
	if n := v.As[code]; n != 0 {
		return n
	}
	return Number(code)
}

// A refusal is an error of the edge; number is VDSM's for it, 0: that of its code.
type refusal struct {
	err    *spm.Error
	number int
}

func (r *refusal) Error() string { return r.err.Message }
func (r *refusal) Unwrap() error { return r.err }

func refuse(code spm.Code, number int, format string, a ...any) error {
	return &refusal{&spm.Error{Code: code, Message: fmt.Sprintf(format, a...)}, number}
}

// invalid refuses an argument.
func invalid(format string, a ...any) error { return refuse(spm.CodeInvalid, 0, format, a...) }

// unsupported refuses what VDSM knows and we do not have.
func unsupported(number int, format string, a ...any) error {
	return refuse(spm.CodeUnsupported, number, format, a...)
}

// about says what a refusal is about.
func about(err error, what string) error {
	var r *refusal
	if !errors.As(err, &r) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return refuse(r.err.Code, r.number, "%s: %s", what, r.err.Message)
}
