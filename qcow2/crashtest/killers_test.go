package crashtest

// A killer is a script that kills a mutant, and the image that it runs on.
type killer struct{ row, script string }

// killers are found by the lab itself, at random, and reduced; or they are made for
// what random scripts reach too seldom.
var killers = map[string][]killer{}
