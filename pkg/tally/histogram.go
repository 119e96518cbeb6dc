package tally

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
)

// Schemas of native histograms: each bucket is 2^(2^-schema) times as wide as the one before.
const (
	minSchema = -4
	maxSchema = 8
)

// maxCount is how much a sum counts at most; two of it are an int64.
const maxCount = 1 << 61

// maxNative is how many buckets of a native histogram are taken from outside.
const maxNative = 1024

// maxIndex is above that of a bucket for any float64, at the finest schema.
const maxIndex = 1100 << maxSchema

func checkHistogram(h *dto.Histogram) error {
	switch {
	case h == nil:
		return errors.New("no histogram")
	case h.GetSampleCountFloat() != 0 || h.GetZeroCountFloat() != 0 || len(h.PositiveCount)+len(h.NegativeCount) > 0:
		return errors.New("a histogram of floats")
	case math.IsNaN(h.GetSampleSum()) || math.IsInf(h.GetSampleSum(), 0):
		return fmt.Errorf("a histogram with the sum %v", h.GetSampleSum())
	case h.GetSampleCount() > maxCount:
		return fmt.Errorf("a histogram of %d samples", h.GetSampleCount())
	case len(h.Bucket) > maxBuckets:
		return fmt.Errorf("%d buckets, at most %d are taken", len(h.Bucket), maxBuckets)
	}
	bound, count := math.Inf(-1), uint64(0)
	for _, b := range h.Bucket {
		if !(b.GetUpperBound() > bound) || b.GetCumulativeCount() < count || b.GetCumulativeCount() > h.GetSampleCount() {
			return fmt.Errorf("buckets that are no histogram's, at %v", b.GetUpperBound())
		}
		bound, count = b.GetUpperBound(), b.GetCumulativeCount()
	}
	_, err := newNative(h)
	return err
}

// addHistograms returns the sum of both, of which a may be nil. Of the classic buckets it has those that both have.
func addHistograms(a, b *dto.Histogram) *dto.Histogram {
	sum := &dto.Histogram{
		SampleCount: proto.Uint64(a.GetSampleCount() + b.GetSampleCount()),
		SampleSum:   proto.Float64(a.GetSampleSum() + b.GetSampleSum()),
	}
	counts := map[float64]uint64{}
	for _, x := range a.GetBucket() {
		counts[x.GetUpperBound()] = x.GetCumulativeCount()
	}
	for _, x := range b.GetBucket() {
		n, ok := counts[x.GetUpperBound()]
		if (ok || a == nil) && !math.IsInf(x.GetUpperBound(), 1) { // the last one is the count
			sum.Bucket = append(sum.Bucket, &dto.Bucket{UpperBound: x.UpperBound,
				CumulativeCount: proto.Uint64(n + x.GetCumulativeCount())})
		}
	}
	na, erra := newNative(a)
	nb, errb := newNative(b)
	switch {
	case erra != nil || errb != nil: // checked before
	case a == nil || a.GetSampleCount() == 0:
		nb.write(sum)
	case b.GetSampleCount() == 0:
		na.write(sum)
	case na != nil && nb != nil:
		na.add(nb)
		na.write(sum)
	}
	return sum
}

// native is a native histogram whose buckets are a map.
type native struct {
	schema             int32
	threshold          float64
	zero               uint64
	positive, negative map[int]uint64
}

// newNative returns nil for a classic histogram.
func newNative(h *dto.Histogram) (*native, error) {
	if h == nil || h.Schema == nil {
		return nil, nil
	}
	n := &native{schema: h.GetSchema(), threshold: h.GetZeroThreshold(), zero: h.GetZeroCount()}
	if n.schema < minSchema || n.schema > maxSchema {
		return nil, fmt.Errorf("a native histogram of the schema %d, it can be %d to %d", n.schema, minSchema, maxSchema)
	}
	if !(n.threshold >= 0 && n.threshold <= 1) {
		return nil, fmt.Errorf("a native histogram with the zero threshold %v", n.threshold)
	}
	var err error
	if n.positive, err = buckets(h.PositiveSpan, h.PositiveDelta); err != nil {
		return nil, err
	}
	if n.negative, err = buckets(h.NegativeSpan, h.NegativeDelta); err != nil {
		return nil, err
	}
	if n.zero > h.GetSampleCount() || n.zero+total(n.positive)+total(n.negative) != h.GetSampleCount() {
		return nil, errors.New("a native histogram whose buckets are not its count")
	}
	return n, nil
}

func total(m map[int]uint64) (sum uint64) {
	for _, n := range m {
		sum += n
	}
	return sum
}

func buckets(spans []*dto.BucketSpan, deltas []int64) (map[int]uint64, error) {
	if len(spans) > maxNative || len(deltas) > maxNative {
		return nil, fmt.Errorf("a native histogram of %d buckets, at most %d are taken", len(deltas), maxNative)
	}
	m, index, count := map[int]uint64{}, 0, int64(0)
	for i, span := range spans {
		offset, length := int(span.GetOffset()), int(span.GetLength())
		if i > 0 && offset < 0 || length > len(deltas) {
			return nil, errors.New("a native histogram whose spans are not its buckets'")
		}
		index += offset
		for _, d := range deltas[:length] {
			if count += d; count < 0 || d > maxCount || count > maxCount || index > maxIndex || index < -maxIndex {
				return nil, fmt.Errorf("a native histogram with the count %d in the bucket %d", count, index)
			}
			if count > 0 {
				m[index] = uint64(count)
			}
			index++
		}
		deltas = deltas[length:]
	}
	if len(deltas) > 0 {
		return nil, errors.New("a native histogram with more buckets than its spans have")
	}
	return m, nil
}

// reduce makes the buckets as wide as another schema has them, which is not finer.
func (n *native) reduce(schema int32) {
	shift := n.schema - schema
	n.schema = schema
	for _, m := range []*map[int]uint64{&n.positive, &n.negative} {
		wide := map[int]uint64{}
		for i, count := range *m {
			wide[(i-1)>>shift+1] += count
		}
		*m = wide
	}
}

// bound is the upper bound of a bucket.
func (n *native) bound(index int) float64 {
	return math.Exp2(float64(index) * math.Exp2(-float64(n.schema)))
}

// widen makes the zero bucket reach to the threshold at least. A bucket in which that lies is swallowed whole.
func (n *native) widen(threshold float64) {
	n.threshold = max(n.threshold, threshold)
	for swallowed := true; swallowed; {
		swallowed = false
		for _, m := range []map[int]uint64{n.positive, n.negative} {
			for i, count := range m {
				if n.bound(i-1) < n.threshold {
					n.threshold = max(n.threshold, n.bound(i))
					n.zero += count
					delete(m, i)
					swallowed = true
				}
			}
		}
	}
}

// add adds another one, at the coarser schema and the wider zero bucket of the two.
func (n *native) add(b *native) {
	schema := min(n.schema, b.schema)
	n.reduce(schema)
	b.reduce(schema)
	for n.threshold != b.threshold {
		n.widen(b.threshold)
		b.widen(n.threshold)
	}
	n.zero += b.zero
	for i, count := range b.positive {
		n.positive[i] += count
	}
	for i, count := range b.negative {
		n.negative[i] += count
	}
	for len(n.positive)+len(n.negative) > monitor.NativeBuckets && n.schema > minSchema {
		n.reduce(n.schema - 1)
	}
}

func (n *native) write(h *dto.Histogram) {
	if n == nil {
		return
	}
	h.Schema, h.ZeroThreshold, h.ZeroCount = proto.Int32(n.schema), proto.Float64(n.threshold), proto.Uint64(n.zero)
	h.PositiveSpan, h.PositiveDelta = spans(n.positive)
	h.NegativeSpan, h.NegativeDelta = spans(n.negative)
	if len(h.PositiveSpan) == 0 { // says that the histogram is native
		h.PositiveSpan = []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(0)}}
	}
}

func spans(m map[int]uint64) (spans []*dto.BucketSpan, deltas []int64) {
	next, last := 0, int64(0)
	for _, i := range slices.Sorted(maps.Keys(m)) {
		if len(spans) == 0 || i != next {
			spans = append(spans, &dto.BucketSpan{Offset: proto.Int32(int32(i - next)), Length: proto.Uint32(0)})
		}
		span := spans[len(spans)-1]
		span.Length = proto.Uint32(span.GetLength() + 1)
		deltas = append(deltas, int64(m[i])-last)
		next, last = i+1, int64(m[i])
	}
	return spans, deltas
}
