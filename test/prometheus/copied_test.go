package prometheus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	grafanaquery "github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"
)

// promtool finds nothing to say about the configs, and their own tests pass.
func TestPromtool(t *testing.T) {
	promtool := tool(t, promtool)
	for _, args := range []string{
		"check config prometheus.yml",
		"check rules --lint-fatal rules.yml alerts.yml",
		"test rules rules_test.yml alerts_test.yml",
	} {
		cmd := exec.Command(promtool, strings.Fields(args)...)
		cmd.Dir = filepath.Join(configs, "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", args, err, out)
		}
	}
}

// rules are a file of rules.
type rules struct {
	Groups []struct {
		Rules []struct{ Alert, Record, Expr string }
	}
}

// Each alert has a test in which it fires, and one in which it does not; each recording rule has a test.
func TestRulesAreTested(t *testing.T) {
	for _, name := range []string{"rules", "alerts"} {
		var file rules
		var tests struct {
			Tests []struct {
				Alerts []struct {
					Name   string `yaml:"alertname"`
					Expect []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
				Records []struct {
					Expr   string
					Expect []any `yaml:"exp_samples"`
				} `yaml:"promql_expr_test"`
			}
		}
		parse(t, &file, name+".yml")
		parse(t, &tests, name+"_test.yml")
		fires, quiet := map[string]bool{}, map[string]bool{}
		for _, test := range tests.Tests {
			for _, a := range test.Alerts {
				fires[a.Name] = fires[a.Name] || len(a.Expect) > 0
				quiet[a.Name] = quiet[a.Name] || len(a.Expect) == 0
			}
			for _, r := range test.Records {
				fires[r.Expr] = fires[r.Expr] || len(r.Expect) > 0
			}
		}
		for _, g := range file.Groups {
			for _, r := range g.Rules {
				if !fires[r.Alert+r.Record] || r.Alert != "" && !quiet[r.Alert] {
					t.Errorf("%s.yml: %s%s lacks a test in %s_test.yml", name, r.Alert, r.Record, name)
				}
			}
		}
	}
}

func parse(t *testing.T, into any, name string) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, "configs", "prometheus", name)), into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// asksRules checks that Prometheus can evaluate each rule, has what is recorded, and sees what the runs are to be
// alarmed of.
func (l *lab) asksRules(prom promv1.API) {
	l.t.Helper()
	expected := map[string]bool{"KtstrVmmDrops": true, "KtstrVmmCRCErrors": true, "KtstrVmmFaults": true,
		"KtstrVmmTimeouts": true, "KtstrVmmLostRuns": true}
	seen := 0
	l.poll(func() error { // until each was evaluated
		result, err := prom.Rules(context.Background(), nil)
		if err != nil {
			return err
		}
		seen = 0
		for _, g := range result.Groups {
			for _, r := range g.Rules {
				seen++
				switch r := r.(type) {
				case promv1.AlertingRule:
					if r.Health != promv1.RuleHealthGood || expected[r.Name] && r.State != string(promv1.AlertStateFiring) {
						return fmt.Errorf("%s is %s, %s: %s", r.Name, r.Health, r.State, r.LastError)
					}
				case promv1.RecordingRule:
					v, err := l.query(prom, r.Name, time.Time{})
					if err != nil || len(v) == 0 || r.Health != promv1.RuleHealthGood {
						return fmt.Errorf("%s is %s, %v: %s, %v", r.Name, r.Health, v, r.LastError, err)
					}
				}
			}
		}
		return nil
	})
	var files [2]rules
	parse(l.t, &files[0], "rules.yml")
	parse(l.t, &files[1], "alerts.yml")
	for _, f := range files {
		for _, g := range f.Groups {
			seen -= len(g.Rules)
			for _, r := range g.Rules {
				if _, err := l.query(prom, r.Expr, time.Time{}); err != nil {
					l.t.Error(err)
				}
			}
		}
	}
	if seen != 0 {
		l.t.Errorf("Prometheus has %d rules more than the files", seen)
	}
}

// board is what this test takes from the dashboard.
type board struct {
	UID    string
	Panels []struct {
		Title   string
		Targets []struct {
			Expr    string
			Instant bool
		}
	}
	Templating struct {
		List []struct{ Type, Name, Definition string }
	}
}

const boardFile = "configs/grafana/dashboards/ktstr-vmm.json"

func loadBoard(t *testing.T) (b board) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, boardFile)), &b); err != nil {
		t.Fatal(err)
	}
	return b
}

var labelValues = regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)

// asksDashboard asks what Grafana would ask for the dashboard.
func (l *lab) asksDashboard(prom promv1.API, begin time.Time) {
	l.t.Helper()
	ctx, b := context.Background(), loadBoard(l.t)
	end := time.Now()
	for _, v := range b.Templating.List {
		if m := labelValues.FindStringSubmatch(v.Definition); m != nil {
			found, _, _, err := prom.LabelValues(ctx, m[2], []string{m[1]}, begin, end)
			if err != nil || len(found) == 0 {
				l.t.Errorf("%s: %v, %v", v.Definition, found, err)
			}
		} else if v.Type == "query" {
			l.t.Errorf("%s: %q is no query that this test knows", v.Name, v.Definition)
		}
	}
	fill := strings.NewReplacer("$job", byExporter, "$suite", ".*", "$__rate_interval", "4s", "$__interval", "4s",
		"$__range",
		fmt.Sprintf("%.0fs", end.Sub(begin).Seconds()))
	asked := 0
	for _, p := range b.Panels {
		for _, q := range p.Targets {
			asked++
			query := fill.Replace(q.Expr)
			if strings.Contains(query, "$") {
				l.t.Errorf("%s: %s has a variable that this test does not know", p.Title, query)
				continue
			}
			var n int
			var err error
			if q.Instant {
				var v model.Vector
				v, err = l.query(prom, query, end)
				n = len(v)
			} else {
				var v model.Value
				v, _, _, err = prom.QueryRange(ctx, query, promv1.Range{Start: begin, End: end, Step: time.Second})
				m, _ := v.(model.Matrix)
				n = len(m)
			}
			if err != nil || n == 0 {
				l.t.Errorf("%s: %s has %d series, %v", p.Title, query, n, err)
			}
		}
	}
	if asked == 0 {
		l.t.Error("the dashboard asks for nothing")
	}
}

// strictly decodes as Grafana's schemas have it. Some of the SDK's functions return an empty list of errors, where
// nothing is wrong.
func strictly(into interface{ UnmarshalJSONStrict([]byte) error }, raw []byte) error {
	err := into.UnmarshalJSONStrict(raw)
	var list cog.BuildErrors
	if errors.As(err, &list) && len(list) == 0 {
		return nil
	}
	return err
}

// checkBoard judges a dashboard by Grafana's schemas: the whole, and in each panel its options and its fields.
func checkBoard(raw []byte) error {
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(heatmap.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(grafanaquery.VariantConfig())
	known := map[string]bool{"heatmap": true, "stat": true, "table": true, "timeseries": true}
	//lint:ignore SA1019 files are provisioned in this format by every Grafana; the one after it is for the newest alone
	if err := strictly(&dashboard.Dashboard{}, raw); err != nil {
		return err
	}
	var parts struct{ Panels []json.RawMessage }
	if err := json.Unmarshal(raw, &parts); err != nil {
		return err
	}
	for _, p := range parts.Panels {
		var fields struct{ FieldConfig json.RawMessage }
		var panel dashboard.Panel
		if err := errors.Join(strictly(&panel, p), json.Unmarshal(p, &fields)); err != nil {
			return err
		}
		if err := strictly(&dashboard.FieldConfigSource{}, fields.FieldConfig); err != nil {
			return fmt.Errorf("%s: %w", *panel.Title, err)
		}
		if !known[panel.Type] {
			return fmt.Errorf("%s is a %s, which was not registered", *panel.Title, panel.Type)
		}
		for _, q := range panel.Targets {
			if _, ok := q.(*grafanaquery.Dataquery); !ok {
				return fmt.Errorf("%s: a query is a %T", *panel.Title, q)
			}
		}
	}
	return nil
}

// The dashboard is one by Grafana's schemas, by which a misspelt one is none; what provisions it fits.
func TestDashboard(t *testing.T) {
	text := read(t, boardFile)
	if err := checkBoard([]byte(text)); err != nil {
		t.Error(err)
	}
	for _, word := range []string{"schemaVersion", "gridPos", "expr", "showLegend", "lineWidth", "unit", "overrides"} {
		bad := strings.Replace(text, `"`+word+`"`, `"`+word+`s"`, 1)
		if bad == text || checkBoard([]byte(bad)) == nil {
			t.Errorf("%q can be misspelt", word)
		}
	}
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name, UID, Type, Access, URL string
			IsDefault                    bool              `yaml:"isDefault"`
			JSONData                     map[string]string `yaml:"jsonData"`
		}
	}
	var boards struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Type     string
			AllowUIUpdates bool `yaml:"allowUiUpdates"`
			Options        struct{ Path string }
		}
	}
	for name, into := range map[string]any{"datasources/prometheus.yml": &sources, "dashboards/ktstr-vmm.yml": &boards} {
		decoder := yaml.NewDecoder(strings.NewReader(read(t, "configs/grafana/provisioning", name)))
		decoder.KnownFields(true)
		if err := decoder.Decode(into); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(sources.Datasources) != 1 || sources.Datasources[0].Type != "prometheus" || sources.APIVersion != 1 ||
		len(boards.Providers) != 1 || boards.Providers[0].Options.Path == "" || boards.APIVersion != 1 {
		t.Errorf("%+v, %+v", sources, boards)
	}
}
