//go:build race

package integration

// raceEnabled says that these tests run under the race detector, so the product is built with it too.
const raceEnabled = true
