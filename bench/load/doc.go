// Package load is a load generator for NBD servers: it asks as fast as the server
// answers, with a number of requests in flight on each connection, and measures.
//
// It exists because a general client is the limit before a good server is: fio with
// its NBD engine ends at some 60,000 requests a second one at a time. This one speaks
// simple replies over a blocking socket, sends all requests that a batch of replies
// has made room for with one system call, and does nothing else: no allocation, no
// timer, one goroutine and one thread for each connection.
//
// Every block that it writes carries a stamp, its place and the run's seed, so that
// the content can be checked afterwards ([Verify]) whoever served it.
package load
