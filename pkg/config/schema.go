package config

import (
	"fmt"
	"maps"
	"strings"
)

// Draft is the version of JSON Schema that schemas are written in.
const Draft = "https://json-schema.org/draft/2020-12/schema"

// Schema returns the JSON Schema of a command's config files, for encoding/json.
func Schema(c Command) map[string]any {
	return map[string]any{
		"$schema":              Draft,
		"title":                "Settings of ktstr-vmm " + c.String(),
		"type":                 []string{"object", "null"},
		"additionalProperties": false,
		"properties":           New(c).Properties(),
	}
}

// Properties returns the schemas of the settings' values, by key.
func (s *Settings) Properties() map[string]any {
	all := map[string]any{}
	for _, x := range s.list {
		all[x.Name] = x.property()
	}
	return all
}

func (x *Setting) property() map[string]any {
	p := map[string]any{"description": x.Usage}
	value := x.valueSchema()
	if x.List() {
		value = map[string]any{"anyOf": []any{value, map[string]any{"type": "array", "items": value}}}
	} else if x.DefValue != "" {
		value["default"] = x.DefValue
	}
	maps.Copy(p, value)
	return p
}

func (x *Setting) valueSchema() map[string]any {
	scalar := []string{"string", "integer", "number", "boolean"} // of which the text is taken
	switch x.Value.Type() {
	case "size":
		return map[string]any{"type": []string{"string", "integer"}, "pattern": "^(0x)?[0-9a-fA-F]+[KMGkmg]?$", "minimum": 0}
	case "duration":
		return map[string]any{"type": []string{"string", "integer"}, "maximum": 0,
			"pattern": "^(([0-9]*[.])?[0-9]+(h|m|s|ms|us|µs|ns))+$|^0$"}
	case "bool":
		return map[string]any{"type": "boolean"}
	case "int":
		return map[string]any{"type": "integer", "minimum": 0}
	case "float64":
		return map[string]any{"type": "number", "minimum": 0}
	}
	if x.Words != nil {
		return map[string]any{"enum": x.Words}
	}
	return map[string]any{"type": scalar}
}

// Table returns the settings of both commands as a table in Markdown: key, command, default and usage.
func Table() string {
	var b strings.Builder
	b.WriteString("| key | of | default | |\n|---|---|---|---|\n")
	demo := New(Demo)
	row := func(x *Setting, of string) {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", x.Name, of, strings.Trim(x.DefValue, "[]"),
			strings.ReplaceAll(x.Usage, "|", "\\|"))
	}
	for _, x := range New(Run).list {
		if demo.Lookup(x.Name) != nil {
			row(x, "both")
		} else {
			row(x, "run")
		}
	}
	for _, x := range demo.list {
		if demo.other().Lookup(x.Name) == nil {
			row(x, "demo")
		}
	}
	return b.String()
}
