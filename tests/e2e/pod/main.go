// What runs in the pods of the end-to-end tests: a web server that says who it is, and a client that never stops.
//
//	e2e-pod serve [-port 80]            answers every request with "hello from POD", POD being the host's name
//	e2e-pod ask [-every 20ms] NAME=URL...  asks each URL again and again, each time by a new socket
//	e2e-pod proxy [-port 8181] -to URL  passes requests on, and tells whose answer it is in a header, "Via: 1.1 POD"
//	e2e-pod report                      what `ask` in the same pod has seen so far, as JSON
//	e2e-pod pause                       does nothing, for pods' sandboxes
//
// A URL is http://HOST:PORT/PATH, or dns://SERVER:PORT/NAME for a query over UDP. A request that has no good answer
// within three seconds has failed, and nothing is asked a second time: what is lost is seen to be lost. It is counted from
// the first answer on; until then the target, or the way there, is not there yet.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	patience   = 3 * time.Second
	reportAddr = "127.0.0.1:8099"
	keptErrors = 20
	slow       = 500 * time.Millisecond
)

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	commands := map[string]func([]string){"serve": serve, "proxy": proxy, "ask": ask, "report": report, "pause": pause}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		log.Fatal("say serve, proxy, ask, report or pause")
	}
	commands[os.Args[1]](os.Args[2:])
}

func pause([]string) { untilTold() }

func untilTold() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	<-told
}

func serve(args []string) {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	port := flags.Int("port", 80, "")
	flags.Parse(args)
	listen(*port, func(w http.ResponseWriter, r *http.Request) {
		log.Printf("%s asks %s%s", r.RemoteAddr, r.Host, r.URL.Path)
		fmt.Fprintf(w, "hello from %s\n", podName())
	})
}

func proxy(args []string) {
	flags := flag.NewFlagSet("proxy", flag.ExitOnError)
	port := flags.Int("port", 8181, "")
	to := flags.String("to", "", "")
	flags.Parse(args)
	where, err := url.Parse(*to)
	if err != nil || *to == "" {
		log.Fatalf("-to %q is no URL", *to)
	}
	onward := httputil.NewSingleHostReverseProxy(where)
	listen(*port, func(w http.ResponseWriter, r *http.Request) {
		log.Printf("%s asks %s%s", r.RemoteAddr, r.Host, r.URL.Path)
		if r.URL.Path == "/healthz" {
			return
		}
		w.Header().Add("Via", "1.1 "+podName())
		onward.ServeHTTP(w, r)
	})
}

// listen answers until it is told to end, and a little longer: endpoints go a little later than the signal comes.
func listen(port int, answer http.HandlerFunc) {
	go func() { log.Fatal(http.ListenAndServe(fmt.Sprintf(":%d", port), answer)) }()
	untilTold()
	time.Sleep(2 * time.Second)
}

func podName() string {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	return name
}

// seen is what became of one target's requests.
type seen struct {
	OK      int            `json:"ok"`
	Failed  int            `json:"failed"`
	By      map[string]int `json:"by"`      // answers, and how often each came
	Errors  []string       `json:"errors"`  // the first ones, with their times
	Slow    int            `json:"slow"`    // answers that took more than half a second: a packet was sent again
	Slowest float64        `json:"slowest"` // seconds
	Waited  float64        `json:"waited"`  // seconds from the first request's start to the first answer
}

type asker struct {
	mutex sync.Mutex
	seen  map[string]*seen
}

func ask(args []string) {
	flags := flag.NewFlagSet("ask", flag.ExitOnError)
	every := flags.Duration("every", 20*time.Millisecond, "")
	flags.Parse(args)
	a := &asker{seen: map[string]*seen{}}
	for _, target := range flags.Args() {
		name, address, found := strings.Cut(target, "=")
		where, err := url.Parse(address)
		if !found || err != nil {
			log.Fatalf("%q is not NAME=URL", target)
		}
		once := askHTTP
		if where.Scheme == "dns" {
			once = askDNS
		}
		a.seen[name] = &seen{By: map[string]int{}, Errors: []string{}}
		go a.askForever(name, where, once, *every)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		json.NewEncoder(w).Encode(a.seen)
	})
	go func() { log.Fatal(http.ListenAndServe(reportAddr, nil)) }()
	untilTold()
}

func (a *asker) askForever(name string, where *url.URL, once func(*url.URL) (string, error), every time.Duration) {
	began := time.Now()
	for {
		started := time.Now()
		answer, err := once(where)
		took := time.Since(started)
		a.mutex.Lock()
		s := a.seen[name]
		if s.OK > 0 {
			s.Slowest = max(s.Slowest, took.Seconds())
		}
		if s.OK > 0 && took > slow {
			s.Slow++
			log.Printf("%s: took %v", name, took)
		}
		if err != nil && s.OK == 0 {
			log.Printf("%s: not yet: %v", name, err)
		} else if err != nil {
			s.Failed++
			if len(s.Errors) < keptErrors {
				s.Errors = append(s.Errors, started.Format("15:04:05.000")+" "+err.Error())
			}
			log.Printf("%s: %v", name, err)
		} else {
			if s.OK == 0 {
				s.Waited = time.Since(began).Seconds()
			}
			s.OK++
			s.By[answer]++
		}
		a.mutex.Unlock()
		time.Sleep(max(0, every-took))
	}
}

func askHTTP(where *url.URL) (string, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(where.String())
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// askDNS asks for a name's A records by one datagram.
func askDNS(where *url.URL) (string, error) {
	connection, err := net.Dial("udp", where.Host)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(patience))
	query := binary.BigEndian.AppendUint16(nil, uint16(time.Now().UnixNano()))
	query = append(query, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired, one question
	for _, label := range strings.Split(strings.Trim(where.Path, "/."), ".") {
		query = append(append(query, byte(len(label))), label...)
	}
	query = append(query, 0, 0, 1, 0, 1)
	if _, err := connection.Write(query); err != nil {
		return "", err
	}
	answer := make([]byte, 1500)
	n, err := connection.Read(answer)
	switch {
	case err != nil:
		return "", err
	case n < 12 || !bytes.Equal(answer[:2], query[:2]):
		return "", errors.New("an answer to another question")
	case answer[3]&15 != 0:
		return "", fmt.Errorf("response code %d", answer[3]&15)
	}
	return fmt.Sprintf("%d records", binary.BigEndian.Uint16(answer[6:])), nil
}

func report([]string) {
	response, err := http.Get("http://" + reportAddr)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		log.Fatal(err)
	}
}
