// node-cache as NodeLocal DNSCache runs it behind a local redirect policy: CoreDNS with the plugins that are in its
// image, and its flags.
//
// The real one, of the module k8s.io/dns, is CoreDNS too; what it adds (an interface with the cluster DNS address,
// iptables rules) is switched off where a policy redirects, and is not here: to ask for it is an error. From its
// Corefile.base it writes its Corefile: __PILLAR__CLUSTER__DNS__ becomes the Service's address that -upstreamsvc names
// (from the environment, as each pod has it), __PILLAR__UPSTREAM__SERVERS__ the node's own resolvers.
package main

import (
	"flag"
	"log"
	"os"
	"strings"

	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/debug"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/whoami"
)

func main() {
	flag.String("localip", "", "addresses that the cache answers as (the policy's frontends)")
	flag.Bool("skipteardown", false, "")
	flag.String("metrics-listen-address", "", "of node-cache's own metrics, which are about its iptables rules")
	flag.String("health-port", "", "")
	setsUpInterface := flag.Bool("setupinterface", true, "")
	setsUpRules := flag.Bool("setupiptables", true, "")
	base := flag.String("basecorefile", "/etc/coredns/Corefile.base", "")
	upstream := flag.String("upstreamsvc", "kube-dns", "")
	flag.Parse()
	if *setsUpInterface || *setsUpRules {
		log.Fatal("this node-cache sets up no interface and no rules: say -setupinterface=false -setupiptables=false")
	}
	if template, err := os.ReadFile(*base); err == nil {
		corefile := flag.Lookup("conf").Value.String()
		if err := os.WriteFile(corefile, []byte(filled(string(template), *upstream)), 0o644); err != nil {
			log.Fatal(err)
		}
	} else if !os.IsNotExist(err) {
		log.Fatal(err)
	}
	coremain.Run()
}

func filled(template, upstream string) string {
	name := strings.ToUpper(strings.ReplaceAll(upstream, "-", "_")) + "_SERVICE_HOST"
	address, found := os.LookupEnv(name)
	if !found && strings.Contains(template, "__PILLAR__CLUSTER__DNS__") {
		log.Fatalf("no %s: is Service %s in this pod's namespace, and older than the pod?", name, upstream)
	}
	return strings.NewReplacer(
		"__PILLAR__CLUSTER__DNS__", address,
		"__PILLAR__UPSTREAM__SERVERS__", "/etc/resolv.conf",
	).Replace(template)
}
