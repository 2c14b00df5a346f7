// Looks names up as Go does: `stub TIMES NAME ...` prints a line for each lookup.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

func main() {
	for i := 1; i+1 < len(os.Args); i += 2 {
		times, _ := strconv.Atoi(os.Args[i])
		for ; times > 0; times-- {
			addresses, err := net.LookupHost(os.Args[i+1])
			var wrong *net.DNSError
			switch {
			case err == nil:
				fmt.Println(strings.Join(addresses, " "))
			case errors.As(err, &wrong) && wrong.IsNotFound:
				fmt.Println("missing")
			default:
				fmt.Println("failed:", err)
			}
		}
	}
}
