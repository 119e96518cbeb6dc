package exporter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of a run's waiting, all behind its back but for the last.
const (
	interval   = time.Second            // between two messages
	writeLimit = 200 * time.Millisecond // to reach the exporter, and for it to take a message
	// EndLimit is how long the end of a run waits in all, for the exporter's word that it has it, and for the spool.
	EndLimit = 500 * time.Millisecond
	// ackLimit is the exporter's part of it.
	ackLimit = 200 * time.Millisecond
)

// maxSpooled is how many ended runs wait for an exporter that is away.
const maxSpooled = 4096

// Client reports a run to the exporter, on a goroutine of its own.
type Client struct {
	socket string
	run    Run
	gather prometheus.Gatherer
	conn   net.Conn

	end  chan End
	done chan error
}

// Start begins to report a run, whose metrics are asked of g until End has returned.
func Start(socket string, run Run, g prometheus.Gatherer) *Client {
	c := &Client{socket: socket, run: run, gather: g, end: make(chan End, 1), done: make(chan error, 1)}
	go func() { c.done <- c.report() }()
	return c
}

// End says how the run ended. If the exporter does not answer, it finds that in its spool folder when it is there
// again. It waits for EndLimit at most.
func (c *Client) End(end End) error {
	c.end <- end
	select {
	case err := <-c.done:
		return err
	case <-time.After(EndLimit):
		return fmt.Errorf("neither %s nor the spool folder beside it took the run's end within %v", c.socket, EndLimit)
	}
}

func (c *Client) report() error {
	defer c.hangUp()
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		select {
		case end := <-c.end:
			return c.finish(end)
		default:
		}
		if body, err := c.message(End{}); err == nil {
			_ = c.send(body, writeLimit) // the next message has all of this one
		}
		select {
		case end := <-c.end:
			return c.finish(end)
		case <-ticks.C:
		}
	}
}

func (c *Client) message(end End) ([]byte, error) {
	families, err := c.gather.Gather()
	if err != nil {
		return nil, err
	}
	m := message{Run: c.run, End: end, families: families}
	return m.encode()
}

// send connects where there is no connection yet.
func (c *Client) send(body []byte, limit time.Duration) (err error) {
	deadline := time.Now().Add(limit)
	if c.conn == nil {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		var d net.Dialer
		if c.conn, err = d.DialContext(ctx, "unix", c.socket); err != nil {
			c.conn = nil
			return err
		}
	}
	if err = c.conn.SetDeadline(deadline); err == nil {
		err = writeFrame(c.conn, body)
	}
	if err != nil {
		c.hangUp()
	}
	return err
}

func (c *Client) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// finish delivers the run's end, by the spool folder if there is nobody to take it.
func (c *Client) finish(end End) error {
	body, err := c.message(end)
	if err != nil {
		return err
	}
	var answer [1]byte
	if err = c.send(body, ackLimit); err == nil {
		_, err = c.conn.Read(answer[:])
	}
	if err == nil && answer[0] == acknowledged {
		return nil
	}
	return spool(spoolOf(c.socket), body)
}

// spool leaves a message for an exporter that is away. Where there never was one, nobody will come for it.
func spool(dir string, body []byte) error {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if names, _ := d.Readdirnames(maxSpooled); len(names) == maxSpooled {
		return fmt.Errorf("%s has %d runs that no exporter has taken: this one is not counted", dir, maxSpooled)
	}
	name := rand.Text()
	temp := filepath.Join(dir, "."+name)
	if err := os.WriteFile(temp, body, 0o600); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return os.Rename(temp, filepath.Join(dir, name))
}
