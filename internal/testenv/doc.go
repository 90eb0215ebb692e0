// Package testenv is what tests need from the machine they run on: programs,
// rights, seeds, child processes.
//
// Something missing is a skip that names what to install; with CI=true in the
// environment it is a failure, so that a machine that should run everything
// cannot pass by running less. A child never outlives its test.
package testenv
