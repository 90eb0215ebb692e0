// Package load is a load generator for NBD servers, and for files: it asks as fast as the server
// answers, with a number of requests in flight on each connection, and measures.
//
// It exists because a general client is the limit before a good server is: fio with
// its NBD engine ends at some 60,000 requests a second one at a time. This one speaks
// simple replies over a blocking socket, sends all requests that a batch of replies
// has made room for with one system call, and does nothing else: no allocation, no
// timer, one goroutine and one thread for each connection. To a file it writes past the
// page cache ([RunFile]) with Linux' asynchronous requests, which for a file of FUSE are
// the cheapest there are: io_uring gives each of them to a thread of its own. What the
// kernel alone takes for the writes of a server is a loop of pwrite ([RunCached]).
//
// Every block that it writes carries a stamp, its place, and the run's seed to its end;
// which places were written is known. So the content can be checked afterwards
// ([Verify]) whoever served it.
package load
