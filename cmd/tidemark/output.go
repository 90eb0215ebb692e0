package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// outputFlag adds --output=human|json and returns where its value will be.
func outputFlag(c *cobra.Command) *outputFormat {
	o := outputFormat("human")
	c.Flags().Var(&o, "output", "human or json")
	return &o
}

// An outputFormat is the value of --output.
type outputFormat string

func (o *outputFormat) String() string { return string(*o) }

func (*outputFormat) words() []string { return []string{"human", "json"} }

// Type is what the help text calls the value.
func (o *outputFormat) Type() string { return "FORMAT" }

// Set accepts human and json.
func (o *outputFormat) Set(s string) error {
	if s != "human" && s != "json" {
		return fmt.Errorf("expected human or json, found %q", s)
	}
	*o = outputFormat(s)
	return nil
}

// print writes v as JSON, or lets human write it.
func (o outputFormat) print(w io.Writer, v any, human func(io.Writer) error) error {
	if o != "json" {
		return human(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "    ")
	return e.Encode(v)
}
