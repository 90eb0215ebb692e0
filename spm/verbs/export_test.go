package verbs

import "flag"

// Update says that golden files are written.
var Update = flag.Bool("update", false, "write testdata/replies.txt, and the reference docs/api.md")
