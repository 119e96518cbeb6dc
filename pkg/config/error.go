package config

import (
	"errors"
	"strconv"
	"strings"
)

// Error is about the values of one or more settings.
type Error struct {
	Given []Given
	Err   error // what is wrong with them
}

// Given is a value as an error shows it.
type Given struct{ Source, Text string }

// Error implements error, in one line.
func (e *Error) Error() string {
	var all []string
	for _, g := range e.Given {
		all = append(all, g.Source+" "+g.Text)
	}
	return strings.Join(all, ", ") + ": " + e.Err.Error()
}

// Unwrap returns what is wrong with the values.
func (e *Error) Unwrap() error { return e.Err }

// plain says of what a value can't be parsed as what it should be.
func plain(err error) error {
	var number *strconv.NumError
	switch {
	case errors.As(err, &number) && number.Func == "ParseBool":
		return errors.New("it is true or false")
	case errors.As(err, &number):
		return errors.New("it is a number")
	case strings.HasPrefix(err.Error(), "time: "):
		return errors.New("a duration is a number with a unit: 90s, 10ms, 1h30m")
	}
	return err
}
