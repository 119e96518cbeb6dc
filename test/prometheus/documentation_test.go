package prometheus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	fence     = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	timestamp = regexp.MustCompile(`@\[[0-9.]+\]`)
	queryRow  = regexp.MustCompile("(?m)^\\| [^|]* \\| `(.*)` \\|$")
)

// step is a command of the documentation, and what it prints, "" if that is not shown.
type step struct{ command, output string }

// steps are those of all blocks of commands.
func steps(text string) (all []step) {
	for _, block := range fence.FindAllStringSubmatch(text, -1) {
		if block[1] != "" {
			continue
		}
		for part := range strings.SplitSeq("\n"+block[2], "\n$ ") {
			if part == "" {
				continue
			}
			lines := strings.Split(part, "\n")
			n := 1
			for strings.HasSuffix(lines[n-1], `\`) {
				n++
			}
			all = append(all, step{strings.Join(lines[:n], "\n"), strings.TrimSpace(strings.Join(lines[n:], "\n"))})
		}
	}
	return all
}

// The commands of docs/prometheus.md do what it says, and its queries have answers. Only addresses and intervals are
// others. What prints something that is shown is asked again until it does: Prometheus has to come.
func TestDocumentation(t *testing.T) {
	l := newLab(t)
	l.configure()
	text := read(t, "docs", "prometheus.md")
	all := steps(text)
	if len(all) < 10 {
		t.Fatalf("%d commands", len(all))
	}
	for _, s := range all {
		l.follow(s)
	}
	queries := queryRow.FindAllStringSubmatch(text, -1)
	if len(queries) < 5 {
		t.Fatalf("%d queries", len(queries))
	}
	for _, q := range queries {
		l.poll(func() error {
			cmd := l.shell(fmt.Sprintf("promtool query instant http://%s '%s'", l.at("9090"),
				strings.ReplaceAll(q[1], "J", `job="`+byExporter+`"`)))
			out, err := cmd.CombinedOutput()
			if err != nil || len(out) == 0 {
				return fmt.Errorf("%s: %w\n%s", q[1], err, out)
			}
			return nil
		})
	}
}

func (l *lab) shell(command string) *exec.Cmd {
	cmd := exec.Command("bash", "-c", "set -o pipefail; "+command)
	cmd.Dir, cmd.Env = l.dir, l.environment()
	return cmd
}

// follow does a step of the documentation.
func (l *lab) follow(s step) {
	l.t.Helper()
	command := l.move(s.command)
	if command, ok := strings.CutPrefix(command, "ktstr-vmm exporter"); ok { // which has a default that is taken here
		l.answers(l.start("bash", "-c", "exec ktstr-vmm exporter --web.listen-address="+l.at("9843")+
			strings.TrimSuffix(command, "&")), l.at("9843"), "/healthz")
		return
	}
	if command, ok := strings.CutSuffix(command, " &"); ok {
		l.start("bash", "-c", "exec "+command)
		return
	}
	l.poll(func() error {
		out, err := l.shell(command).CombinedOutput()
		switch got := sorted(string(out)); {
		case s.output == "" && err != nil:
			l.t.Fatalf("%s: %v\n%s", command, err, out)
		case s.output != "":
			if d := cmp.Diff(sorted(s.output), got); d != "" || err != nil {
				return fmt.Errorf("%s: %w\n%s", command, err, d)
			}
		}
		return nil
	})
}

// sorted is what is printed without times, in any order.
func sorted(output string) []string {
	lines := strings.Split(timestamp.ReplaceAllString(strings.TrimSpace(output), "@[]"), "\n")
	slices.Sort(lines)
	return lines
}

// A Prometheus that is configured as docs/prometheus.md has it scrapes an exporter that wants TLS and a password. Its
// requests share a connection then, so that 0 is shown to it longer, and is not lost.
func TestTLS(t *testing.T) {
	l := newLab(t)
	certificate, key := certify(t)
	l.write(filepath.Join(l.dir, "exporter.crt"), certificate)
	l.write(filepath.Join(l.dir, "exporter.key"), key)
	for _, block := range fence.FindAllStringSubmatch(read(t, "docs", "prometheus.md"), -1) {
		if block[1] == "yaml" {
			name := strings.Trim(strings.Fields(block[2])[1], ",")
			l.write(filepath.Join(l.dir, name), l.move(block[2]))
		}
	}
	config := filepath.Join(l.dir, "prometheus.yml")
	l.write(config, "global: {scrape_interval: 1s}\n"+readFile(t, config))
	l.start(l.program, "exporter", "--web.listen-address", l.at("9843"), "--web.config.file", "web.yml")
	prom := l.prometheus(config)
	p := l.start(l.program, "demo", "--memory", "32M", "--shm-size", "64K")
	if code := p.wait(t); code != 0 {
		t.Fatalf("exit code %d\n%s", code, p.said())
	}
	l.poll(func() error {
		v, err := l.query(prom, "ktstr_vmm_runs_total", time.Time{})
		if err == nil && (len(v) != 1 || v[0].Value != 1) {
			err = fmt.Errorf("not 1 run: %v", v)
		}
		return err
	})
	v, err := l.query(prom, "sum(max_over_time(ktstr_vmm_runs_total[1h]) - min_over_time(ktstr_vmm_runs_total[1h]))",
		time.Time{})
	if err != nil || len(v) != 1 || v[0].Value != 1 {
		t.Errorf("the rise is not 1: %v, %v", v, err)
	}
}

// certify makes a certificate for localhost that signs itself.
func certify(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}
