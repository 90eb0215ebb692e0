package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
)

// checkReport has the names of qemu-img check --output=json.
type checkReport struct {
	ImageEnd    int64  `json:"image-end-offset,omitempty"`
	Total       int64  `json:"total-clusters,omitempty"`
	Corruptions int64  `json:"corruptions,omitempty"`
	CheckErrors int64  `json:"check-errors"`
	Leaks       int64  `json:"leaks,omitempty"`
	LeaksFixed  int64  `json:"leaks-fixed,omitempty"`
	Allocated   int64  `json:"allocated-clusters,omitempty"`
	Fragmented  int64  `json:"fragmented-clusters,omitempty"`
	Compressed  int64  `json:"compressed-clusters,omitempty"`
	Filename    string `json:"filename"`
	Format      string `json:"format"`
}

func newCheck() *cobra.Command {
	c := &cobra.Command{
		Use:   "check [OPTIONS] FILE",
		Short: "Check that an image is consistent",
		Long: `Compare the reference counts of an image with what refers to its clusters.

Exit codes: 0 nothing found, or all of it mended; 1 the check could not be done;
2 corruptions; 3 leaked clusters only, which waste space and harm nothing;
63 the image's format, or a feature it uses, cannot be checked.

-r leaks gives leaked clusters back. An image that has corruptions is left as it
is, because what looks leaked may be what is missing elsewhere. Only the image
itself is checked, not its backing file, which is not opened.`,
		Example: "  tidemark check disk.qcow2\n  tidemark check -r leaks disk.qcow2",
		Args:    operands("FILE"),
	}
	out := outputFlag(c)
	image := newImageCommand(c)
	c.Flags().Var(&choice{value: "none", allowed: []string{"none"}}, "backing", "none: no backing file is looked at")
	repair := &choice{allowed: []string{"leaks"}, refused: map[string]string{
		"all": "not supported yet: Tidemark mends leaks only (-r leaks); use qemu-img check -r all on a copy",
	}}
	c.Flags().VarP(repair, "repair", "r", "mend what is found")
	quiet := c.Flags().BoolP("quiet", "q", false, "print nothing but errors")
	showProgress := c.Flags().BoolP("progress", "p", false, "show progress")
	cacheFlag(c, "source-cache", "T")
	c.RunE = func(c *cobra.Command, args []string) error {
		path := args[0]
		if image.raw() {
			return &exitError{exitNotSupported, fmt.Errorf("%s: a raw image has nothing to check: expected -f qcow2", path)}
		}
		if repair.value != "" && image.forceShare {
			return fmt.Errorf("check %s: -r leaks and -U exclude each other: stop the program that writes to the image first", path)
		}
		p := newProgress(c.ErrOrStderr(), *showProgress, *quiet)
		result, err := checkImage(c.Context(), image, path, repair.value == "leaks", p)
		if err != nil {
			return checkError(path, err)
		}
		report := newCheckReport(path, result)
		if !*quiet {
			for _, line := range result.Problems {
				fmt.Fprintln(c.ErrOrStderr(), line)
			}
			if err := out.print(c.OutOrStdout(), report, report.human); err != nil {
				return err
			}
		}
		return report.exit()
	}
	return c
}

// checkImage looks, and with mend mends leaks if nothing else was found. What it
// returns is the state afterwards.
func checkImage(ctx context.Context, image *imageCommand, path string, mend bool, p *progress) (result qcow2.CheckResult, err error) {
	defer p.end()
	open := image.open
	if mend {
		open = func(path string) (*hostfile.File, error) { return hostfile.Open(path, hostfile.Options{}) }
	}
	f, err := open(path)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	result, err = qcow2.Check(ctx, f, qcow2.CheckOptions{Progress: p.report})
	if err != nil || !mend || result.Leaks == 0 {
		return result, err
	}
	if result.Corruptions > 0 || result.CheckErrors > 0 {
		result.Problems = append(result.Problems, "No leaked cluster was given back, because the image has corruptions.")
		return result, nil
	}
	return mendLeaks(ctx, f, p)
}

// mendLeaks mends, and checks what it made.
func mendLeaks(ctx context.Context, f block.File, p *progress) (qcow2.CheckResult, error) {
	mended, err := qcow2.Check(ctx, f, qcow2.CheckOptions{RepairLeaks: true, Progress: p.report})
	if err != nil {
		return mended, err
	}
	result, err := qcow2.Check(ctx, f, qcow2.CheckOptions{Progress: p.report})
	result.LeaksFixed = mended.LeaksFixed
	return result, err
}

// checkError chooses the exit code of a check that could not be done.
func checkError(path string, err error) error {
	err = fmt.Errorf("%s: %w", path, adviseImage(err))
	var missing *qcow2.UnsupportedError
	if errors.As(err, &missing) {
		return &exitError{exitNotSupported, err}
	}
	return err
}

func newCheckReport(path string, r qcow2.CheckResult) checkReport {
	return checkReport{
		ImageEnd: r.ImageEnd, Total: r.TotalClusters, Corruptions: r.Corruptions, CheckErrors: r.CheckErrors,
		Leaks: r.Leaks, LeaksFixed: r.LeaksFixed,
		Allocated: r.Allocated, Fragmented: r.Fragmented, Compressed: r.Compressed,
		Filename: path, Format: "qcow2",
	}
}

// exit is the exit code that qemu-img check has for such a result. Everything has
// been told by then.
func (r checkReport) exit() error {
	switch {
	case r.CheckErrors > 0:
		return &exitError{exitFailure, fmt.Errorf("%s: %d places could not be checked: the check is incomplete", r.Filename, r.CheckErrors)}
	case r.Corruptions > 0:
		return &exitError{code: exitCorruptions}
	case r.Leaks > 0:
		return &exitError{code: exitLeaks}
	}
	return nil
}

// human prints as qemu-img check does.
func (r checkReport) human(w io.Writer) error {
	if r.LeaksFixed > 0 {
		fmt.Fprintf(w, "The following inconsistencies were found and repaired:\n\n    %d leaked clusters\n    0 corruptions\n\nDouble checking the fixed image now...\n", r.LeaksFixed)
	}
	if r.Corruptions == 0 && r.CheckErrors == 0 && r.Leaks == 0 {
		fmt.Fprintln(w, "No errors were found on the image.")
	}
	if r.Corruptions > 0 {
		fmt.Fprintf(w, "\n%d errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n", r.Corruptions)
	}
	if r.Leaks > 0 {
		fmt.Fprintf(w, "\n%d leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n", r.Leaks)
	}
	if r.CheckErrors > 0 {
		fmt.Fprintf(w, "\n%d internal errors have occurred during the check.\n", r.CheckErrors)
	}
	if r.Total > 0 && r.Allocated > 0 {
		percent := func(n, of int64) float64 { return 100 * float64(n) / float64(of) }
		fmt.Fprintf(w, "%d/%d = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n", r.Allocated, r.Total,
			percent(r.Allocated, r.Total), percent(r.Fragmented, r.Allocated), percent(r.Compressed, r.Allocated))
	}
	_, err := fmt.Fprintf(w, "Image end offset: %d\n", r.ImageEnd)
	return err
}
