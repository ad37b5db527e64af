// Go's own resolver, asked all the time until a line comes in. It reads /etc/resolv.conf, and has a new connected
// socket for each query. What it tells is described in resolver.py.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const pause = 10 * time.Millisecond

func say(what, detail string) { fmt.Println(time.Now().UnixMilli(), what, detail) }

// The resolver keeps of an error only its text.
func reason(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsTimeout {
		return "timeout"
	}
	text := err.Error()
	return text[strings.LastIndex(text, ": ")+2:]
}

func ask(resolver *net.Resolver, number int) (string, error) {
	found, err := resolver.LookupIP(context.Background(), "ip4", fmt.Sprintf("%d.who.test.", number))
	if err != nil {
		return "", err
	}
	return found[0].String(), nil
}

func main() {
	var ended atomic.Bool
	go func() {
		os.Stdin.Read(make([]byte, 1))
		ended.Store(true)
	}()
	resolver := &net.Resolver{PreferGo: true}
	answered := map[string]int{}
	number := 0
	for ; !ended.Load(); number++ {
		address, first := ask(resolver, number)
		if first != nil {
			say("retried", reason(first))
			var second error
			if address, second = ask(resolver, number); second != nil {
				say("failed", reason(first)+","+reason(second))
				continue
			}
		}
		if len(answered) == 0 {
			fmt.Println("ready")
		}
		answered[address]++
		time.Sleep(pause)
	}
	for address, count := range answered {
		fmt.Println("answered", address, count)
	}
	fmt.Println("queries", number)
}
