package lockengine

// The leases are a binary heap in which each lock knows its position (from 1),
// so that releasing and renewing are O(log n).

func endsBefore(a, b *named) bool {
	if a.expiry.Boot != b.expiry.Boot {
		return a.expiry.Boot < b.expiry.Boot
	}
	return a.token < b.token
}

func (t *namedTable) pushLease(n *named) {
	t.leases = append(t.leases, n)
	n.pos = int32(len(t.leases))
	t.leaseUp(int(n.pos))
}

func (t *namedTable) dropLease(n *named) {
	i, last := int(n.pos), len(t.leases)
	t.leaseSwap(i, last)
	t.leases[last-1] = nil
	t.leases = t.leases[:last-1]
	n.pos = 0
	if i < last {
		t.fixLease(t.leases[i-1])
	}
	if cap(t.leases) > 4*len(t.leases)+64 {
		t.leases = append(make([]*named, 0, 2*len(t.leases)), t.leases...)
	}
}

// fixLease puts a lock where it belongs after its expiry changed.
func (t *namedTable) fixLease(n *named) {
	t.leaseUp(int(n.pos))
	t.leaseDown(int(n.pos))
}

func (t *namedTable) leaseUp(i int) {
	for ; i > 1 && endsBefore(t.leases[i-1], t.leases[i/2-1]); i /= 2 {
		t.leaseSwap(i, i/2)
	}
}

func (t *namedTable) leaseDown(i int) {
	for 2*i <= len(t.leases) {
		child := 2 * i
		if child < len(t.leases) && endsBefore(t.leases[child], t.leases[child-1]) {
			child++
		}
		if !endsBefore(t.leases[child-1], t.leases[i-1]) {
			return
		}
		t.leaseSwap(i, child)
		i = child
	}
}

func (t *namedTable) leaseSwap(i, j int) {
	l := t.leases
	l[i-1], l[j-1] = l[j-1], l[i-1]
	l[i-1].pos, l[j-1].pos = int32(i), int32(j)
}
