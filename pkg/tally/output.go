package tally

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/push"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"
)

// Job is the job under which metrics are pushed.
const Job = "ktstr-vmm"

// maxTextfile is how large a file can be that is added to, in bytes.
const maxTextfile = 16 << 20

// lockRetry is how often a lock is tried that somebody has.
const lockRetry = 10 * time.Millisecond

// ReadTextfile adds the sum that a file has, as WriteTextfile writes it. It fails with ErrInvalid if the file has
// anything else.
func (t *Tally) ReadTextfile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxTextfile {
		return fmt.Errorf("%w: %s is no plain file of at most %d bytes", ErrInvalid, path, maxTextfile)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(io.LimitReader(f, maxTextfile))
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	var families []*dto.MetricFamily
	for _, family := range parsed {
		families = append(families, family)
	}
	if err := t.Merge(families); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// WriteTextfile writes the sum for node_exporter's textfile collector, in the place of what was in the file. A reader
// sees the old file or the new one.
func (t *Tally) WriteTextfile(path string) error { return prometheus.WriteToTextfile(path, t) }

// AddToTextfile adds the sum to what the file has, where there is one. Who does so at the same time waits for the lock
// of the file's folder, which ctx can end. A file with anything else in it is left as it is: ErrInvalid.
func (t *Tally) AddToTextfile(ctx context.Context, path string) error {
	unlock, err := lock(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unlock()
	sum := New(t.limit)
	if err := sum.ReadTextfile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	families, err := t.Gather()
	if err != nil {
		return err
	}
	if err := sum.Merge(families); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return sum.WriteTextfile(path)
}

// lock takes the lock of a folder.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("somebody else has the lock of %s: %w", dir, ctx.Err())
		case <-time.After(lockRetry):
		}
	}
}

// CheckURL judges the address of a Pushgateway.
func CheckURL(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("it is a URL such as http://pushgateway:9091")
	}
	return nil
}

// Push puts the sum in the place of what a Pushgateway has for the suite. The address may carry a user and a password.
func (t *Tally) Push(ctx context.Context, address, suite string) error {
	if err := CheckURL(address); err != nil {
		return err
	}
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	user := u.User
	u.User = nil // errors show the address
	p := push.New(u.String(), Job).Client(limitedClient{&http.Client{}})
	if user != nil {
		password, _ := user.Password()
		p.BasicAuth(user.Username(), password)
	}
	gather := prometheus.GathererFunc(t.Gather)
	if suite = text(suite); suite != "" {
		p.Grouping("suite", suite)
		gather = func() ([]*dto.MetricFamily, error) { return withoutSuite(t) }
	}
	return p.Gatherer(gather).PushContext(ctx)
}

// withoutSuite leaves out the label that a Pushgateway adds.
func withoutSuite(t *Tally) ([]*dto.MetricFamily, error) {
	families, err := t.Gather()
	for _, f := range families {
		for _, m := range f.GetMetric() {
			m.Label = slices.DeleteFunc(m.Label, func(p *dto.LabelPair) bool { return p.GetName() == "suite" })
		}
	}
	return families, err
}

// limitedClient reads no more of an answer than an error message needs.
type limitedClient struct{ *http.Client }

// Do implements push.HTTPDoer.
func (c limitedClient) Do(r *http.Request) (*http.Response, error) {
	resp, err := c.Client.Do(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, 512), resp.Body}
	}
	return resp, err
}
