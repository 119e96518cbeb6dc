package fdt

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/u-root/u-root/pkg/dt"
)

// The version of the format, and the oldest that it can be read as: section 5.2.
const (
	version           = 17
	compatibleVersion = 16
)

// Nodes that others refer to: section 2.3.3.
const (
	phandleGIC = 1 + iota
	phandleClock
	phandleCPUs // the first processor; the others and the caches follow
)

// Cells of an interrupt: binding interrupt-controller/arm,gic-v3.yaml.
const (
	spi       = 0
	ppi       = 1
	levelHigh = 4
)

// ringName is what the ring's node is called.
const ringName = "shm"

// Encode returns the tree as a kernel reads it. It fails with ErrMemory, ErrCPUs, ErrDevice, ErrBootargs or
// ErrSize.
func (m Machine) Encode() ([]byte, error) {
	var err error
	if m.Topology, err = m.Topology.WithDefaults(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCPUs, err)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	tree := dt.FDT{
		Header:   dt.Header{Magic: dt.Magic, Version: version, LastCompVersion: compatibleVersion},
		RootNode: m.root(),
	}
	if m.Reservation == Cacheable {
		tree.ReserveEntries = []dt.ReserveEntry{{Address: m.Ring.Start, Size: m.Ring.Size}}
	}
	var b bytes.Buffer
	if _, err := tree.Write(&b); err != nil {
		return nil, fmt.Errorf("encoding the device tree: %w", err)
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, a kernel takes at most %d", ErrSize, b.Len(), MaxSize)
	}
	return b.Bytes(), nil
}

// root is the whole tree: section 3.2; its name is binding arm/linux,dummy-virt.yaml's.
func (m Machine) root() *dt.Node {
	nodes := []*dt.Node{m.chosen()}
	nodes = append(nodes, m.memory()...)
	nodes = append(nodes, m.reservedMemory(), m.cpus(), psci(), m.Devices.Timer.node(), m.Devices.gic())
	nodes = append(nodes, m.Devices.uart()...)
	if m.Topology.Nodes > 0 {
		nodes = append(nodes, m.distances())
	}
	return dt.NewNode("", dt.WithProperty(
		text("compatible", "linux,dummy-virt"),
		text("model", "ktstr-vmm"),
		cells("#address-cells", 2),
		cells("#size-cells", 2),
		cells("interrupt-parent", phandleGIC),
	), dt.WithChildren(nodes...))
}

// chosen is what the kernel boots with: section 3.6; binding chosen.txt.
func (m Machine) chosen() *dt.Node {
	n := dt.NewNode("chosen", dt.WithProperty(
		text("bootargs", m.Bootargs),
		text("stdout-path", fmt.Sprintf("/serial@%x", m.Devices.UART.Start)),
	))
	if m.Initrd.Size > 0 {
		n.Update(dt.PropertyU64("linux,initrd-start", m.Initrd.Start))
		n.Update(dt.PropertyU64("linux,initrd-end", m.Initrd.End()))
	}
	if len(m.RNGSeed) > 0 {
		n.Update(dt.Property{Name: "rng-seed", Value: m.RNGSeed})
	}
	if m.KASLRSeed != 0 {
		n.Update(dt.PropertyU64("kaslr-seed", m.KASLRSeed))
	}
	return n
}

// reservedMemory is section 3.5. With no-map the ring must not be in the memory reservation block too:
// Linux then keeps it as memory of its own, and mapping it breaks.
func (m Machine) reservedMemory() *dt.Node {
	ring := node(ringName, m.Ring.Start, reg(m.Ring))
	if m.Reservation == NoMap {
		ring.Update(flag("no-map"))
	}
	return dt.NewNode("reserved-memory", dt.WithProperty(
		cells("#address-cells", 2),
		cells("#size-cells", 2),
		flag("ranges"),
	), dt.WithChildren(ring))
}

// psci is binding arm/psci.yaml.
func psci() *dt.Node {
	return dt.NewNode("psci", dt.WithProperty(
		text("compatible", "arm,psci-1.0", "arm,psci-0.2"),
		text("method", "hvc"),
	))
}

// node is binding timer/arm,arch_timer.yaml.
func (t Timer) node() *dt.Node {
	var interrupts []uint32
	for _, n := range []uint32{t.Secure, t.Physical, t.Virtual, t.Hypervisor} {
		interrupts = append(interrupts, ppi, n, levelHigh)
	}
	return dt.NewNode("timer", dt.WithProperty(
		text("compatible", "arm,armv8-timer"),
		cells("interrupts", interrupts...),
		flag("always-on"),
	))
}

// gic is binding interrupt-controller/arm,gic-v3.yaml.
func (d Devices) gic() *dt.Node {
	return node("interrupt-controller", d.Distributor.Start,
		text("compatible", "arm,gic-v3"),
		reg(d.Distributor, d.Redistributors),
		flag("interrupt-controller"),
		cells("#interrupt-cells", 3),
		cells("#address-cells", 0), // nothing is below it
		cells("phandle", phandleGIC),
	)
}

// uart is binding serial/pl011.yaml, and the clock that it asks for: clock/fixed-clock.yaml.
func (d Devices) uart() []*dt.Node {
	return []*dt.Node{
		dt.NewNode("clock", dt.WithProperty(
			text("compatible", "fixed-clock"),
			cells("#clock-cells", 0),
			cells("clock-frequency", d.UARTClock),
			cells("phandle", phandleClock),
		)),
		node("serial", d.UART.Start,
			text("compatible", "arm,pl011", "arm,primecell"),
			reg(d.UART),
			cells("interrupts", spi, d.UARTInterrupt, levelHigh),
			cells("clocks", phandleClock, phandleClock),
			text("clock-names", "uartclk", "apb_pclk"),
		),
	}
}

// node is a node with an address: section 2.2.1.
func node(name string, address uint64, properties ...dt.Property) *dt.Node {
	return dt.NewNode(fmt.Sprintf("%s@%x", name, address), dt.WithProperty(properties...))
}

// The kinds of values: section 2.2.4.

func flag(name string) dt.Property { return dt.Property{Name: name} }

func cells(name string, values ...uint32) dt.Property { return dt.PropertyU32Array(name, values) }

func text(name string, list ...string) dt.Property {
	return dt.PropertyString(name, strings.Join(list, "\x00"))
}

func reg(ranges ...Range) dt.Property {
	p := dt.Property{Name: "reg"}
	for _, r := range ranges {
		p.Value = append(p.Value, dt.PropertyRegion("", r.Start, r.Size).Value...)
	}
	return p
}
