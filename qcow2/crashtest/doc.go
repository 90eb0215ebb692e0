// Package crashtest holds the crash lab's tests of the engine in package qcow2.
package crashtest
