package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A refusedError says that an option of QEMU's is not there, and what to use
// instead.
type refusedError struct{ instead string }

func (e *refusedError) Error() string { return e.instead }

// A refusedOption is the value of an option that is known and refused.
type refusedOption struct {
	instead string
	typ     string
}

func (o *refusedOption) String() string   { return "" }
func (o *refusedOption) Type() string     { return o.typ }
func (o *refusedOption) Set(string) error { return &refusedError{o.instead} }

// A refusal is an option that QEMU has and that is refused by its name.
type refusal struct {
	name, short string
	value       bool // it takes one
	instead     string
}

// refuse makes c know options only to refuse them. They are not in its help.
func refuse(c *cobra.Command, options ...refusal) {
	for _, o := range options {
		v := &refusedOption{instead: o.instead, typ: "string"}
		f := c.Flags().VarPF(v, o.name, o.short, "not supported: "+o.instead)
		f.Hidden = true
		if !o.value {
			v.typ, f.NoOptDefVal = "bool", "true"
		}
	}
}

// Options of QEMU's that no command here has.
var (
	refuseObject    = refusal{"object", "", true, "objects (secrets, TLS credentials) are not supported yet; tidemark opens images without encryption"}
	refuseImageOpts = refusal{"image-opts", "", false, "image options are not supported: give the file's name, and -f qcow2"}
)

// flagError puts the option in front, and the reason without pflag's frame
// around it.
func flagError(c *cobra.Command, err error) error {
	var v *pflag.InvalidValueError
	if !errors.As(err, &v) {
		return fmt.Errorf("%w; see %s --help", err, c.CommandPath())
	}
	name := "--" + v.GetFlag().Name
	if s := v.GetFlag().Shorthand; s != "" {
		name = "-" + s + ", " + name
	}
	var r *refusedError
	if errors.As(err, &r) {
		return fmt.Errorf("%s: %w", name, r)
	}
	switch v.GetFlag().Value.Type() {
	case "duration":
		return fmt.Errorf("%s %s: expected a time with its unit, such as 20s or 1m30s", name, v.GetValue())
	case "int":
		return fmt.Errorf("%s %s: expected a number", name, v.GetValue())
	}
	return fmt.Errorf("%s %s: %w", name, v.GetValue(), v.Unwrap())
}

// operands accepts exactly the operands named.
func operands(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		return fmt.Errorf("expected %s, found %d operands (%s); see %s --help",
			strings.Join(names, " "), len(args), strings.Join(args, " "), c.CommandPath())
	}
}

// A choice is an option with a few values, some of which are refused by name.
type choice struct {
	value   string
	allowed []string
	refused map[string]string // value -> why, and what instead
}

func (o *choice) String() string { return o.value }

func (o *choice) words() []string { return o.allowed }

// Type is what the help text calls the value.
func (o *choice) Type() string { return strings.ToUpper(strings.Join(o.allowed, "|")) }

// Set accepts what is allowed.
func (o *choice) Set(s string) error {
	for _, a := range o.allowed {
		if a == s {
			o.value = s
			return nil
		}
	}
	if why, ok := o.refused[s]; ok {
		return errors.New(why)
	}
	return fmt.Errorf("expected %s", strings.Join(o.allowed, ", "))
}

// formatFlag adds -f.
func formatFlag(c *cobra.Command) *choice {
	o := &choice{value: formatQCOW2, allowed: []string{formatQCOW2, formatRaw}}
	c.Flags().VarP(o, "format", "f", "format of the image; never guessed")
	return o
}

// cacheFlag adds --cache, which the page cache decides.
func cacheFlag(c *cobra.Command, name, short string) *choice {
	const direct = "bypassing the page cache is not supported yet: use writeback, the default"
	o := &choice{value: "writeback", allowed: []string{"writeback", "unsafe"}, refused: map[string]string{
		"none": direct, "directsync": direct,
		"writethrough": "not supported yet: use writeback, and let the client flush or send FUA",
	}}
	c.Flags().VarP(o, name, short, "writeback; unsafe is taken as writeback")
	return o
}
