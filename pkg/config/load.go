package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/v2"
	"go.yaml.in/yaml/v3"
)

// EnvPrefix begins the names of the environment variables that are settings: KTSTR_VMM_SHM_SIZE is shm-size.
const EnvPrefix = "KTSTR_VMM_"

// EnvConfig is the environment variable that names a config file.
const EnvConfig = EnvPrefix + "CONFIG"

// value is what a file or the environment says of a setting.
type value struct {
	Texts  []string
	List   bool
	Source string // for errors
}

// Load sets what has no value yet: from the environment, which has "NAME=VALUE" strings, and where it says nothing from
// the files, of which later ones win. An error says where the value is, and what would be right.
func (s *Settings) Load(files []string, environ []string) error {
	k := koanf.New("\x00") // no key of ours has parts
	for _, name := range files {
		d, err := Open(name)
		if err != nil {
			return err
		}
		values, err := s.values(d)
		if err != nil {
			return err
		}
		if err := k.Load(confmap.Provider(values, ""), nil); err != nil {
			return err
		}
	}
	var unknown error
	variables := env.Provider("\x00", env.Opt{
		Prefix:      EnvPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, text string) (string, any) {
			x, err := s.variable(name)
			if err != nil && unknown == nil {
				unknown = err
			}
			if x == nil {
				return "", nil
			}
			texts := []string{text}
			if x.List() && text != "" {
				texts = strings.Split(strings.TrimSuffix(text, "\n"), "\n")
			}
			return x.Name, value{texts, len(texts) > 1, name}
		},
	})
	if err := k.Load(variables, nil); err != nil {
		return err
	}
	if unknown != nil {
		return unknown
	}
	for _, x := range s.list {
		if v, ok := k.Get(x.Name).(value); ok && !x.Changed {
			if err := x.take(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// take sets a setting to what was found.
func (x *Setting) take(v value) error {
	if v.List && !x.List() {
		return fmt.Errorf("%s: a list, where one value is expected", v.Source)
	}
	return x.Set(v.Source, v.Texts...)
}

// values returns what a document says of settings.
func (s *Settings) values(d *Document) (map[string]any, error) {
	values := map[string]any{}
	if d.Root == nil {
		return values, nil
	}
	for key, node := range Pairs(d.Root) {
		v, err := s.valueOf(d, key, node)
		if err != nil {
			return nil, err
		}
		values[key.Value] = v
	}
	return values, nil
}

func (s *Settings) valueOf(d *Document, key, node *yaml.Node) (v value, err error) {
	if s.Lookup(key.Value) == nil {
		return v, d.Errorf(key, "%w", s.unknown(key.Value))
	}
	texts, list, err := d.Texts(node)
	if err != nil {
		return v, fmt.Errorf("%s: %w", key.Value, err)
	}
	return value{texts, list, d.At(key) + ": " + key.Value}, nil
}

// Pairs are a mapping's keys and values.
func Pairs(mapping *yaml.Node) func(yield func(key, value *yaml.Node) bool) {
	return func(yield func(key, value *yaml.Node) bool) {
		for pair := range slices.Chunk(mapping.Content, 2) {
			if !yield(pair[0], pair[1]) {
				return
			}
		}
	}
}

// SetNode sets a setting to a document's value, for files that have settings among other things.
func (s *Settings) SetNode(d *Document, key, node *yaml.Node) error {
	v, err := s.valueOf(d, key, node)
	if err != nil {
		return err
	}
	return s.Lookup(key.Value).take(v)
}

// variable returns the setting that an environment variable is for: nil for one of another command's.
func (s *Settings) variable(name string) (*Setting, error) {
	if name == EnvConfig {
		return nil, nil
	}
	key := keyOf(name)
	if x := s.Lookup(key); x != nil && !x.NoFlag {
		return x, nil
	}
	if x := s.other().Lookup(key); x != nil && !x.NoFlag {
		return nil, nil
	}
	near := nearest(key, slices.DeleteFunc(s.keys(), func(key string) bool { return s.Lookup(key).NoFlag }))
	if near != "" {
		near = Variable(near)
	}
	return nil, fmt.Errorf("%s in the environment: no setting has this name%s", name, meant(near))
}

func keyOf(name string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, EnvPrefix)), "_", "-")
}

// Variable returns the name of the environment variable for a key.
func Variable(key string) string {
	return EnvPrefix + strings.ReplaceAll(strings.ToUpper(key), "-", "_")
}

// other returns the settings of the other command.
func (s *Settings) other() *Settings { return New(Run | Demo ^ s.command) }

func (s *Settings) keys() (all []string) {
	for _, x := range s.list {
		all = append(all, x.Name)
	}
	return all
}

// unknown says that a key is none of the settings.
func (s *Settings) unknown(key string) error {
	if s.other().Lookup(key) != nil {
		return fmt.Errorf("%s is a setting of %v, not of %v", key, Run|Demo^s.command, s.command)
	}
	return fmt.Errorf("%q is no setting%s", key, DidYouMean(key, s.keys()))
}

// DidYouMean is the end of an error about a misspelt word, and names the one that it is most like; "" if none is near.
func DidYouMean(wrong string, words []string) string { return meant(nearest(wrong, words)) }

func meant(word string) string {
	if word == "" {
		return ""
	}
	return "; did you mean " + word + "?"
}

// nearest returns the word that a misspelt one is most like, or "" if none is near.
func nearest(wrong string, words []string) string {
	best, least := "", max(len(wrong)/3, min(len(wrong)/2, 2))+1
	for _, w := range words {
		if d := levenshtein.ComputeDistance(strings.ToLower(wrong), w); d < least {
			best, least = w, d
		}
	}
	return best
}

// String returns the command's name.
func (c Command) String() string {
	if c == Demo {
		return "demo"
	}
	return "run"
}
