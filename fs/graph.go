package fs

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"lockfs/lockengine"
)

// party is a node of the graph of who waits for whom: a process, or, where
// that is not known, an owner.
type party struct {
	pid   int32
	owner lockengine.Owner // zero when pid is known
}

func partyOf(who lockengine.Who, owner lockengine.Owner) party {
	if who.PID != 0 {
		return party{pid: who.PID}
	}
	return party{owner: owner}
}

func (p party) String() string {
	if p.pid != 0 {
		return fmt.Sprintf("p%d", p.pid)
	}
	return fmt.Sprintf("o%x", p.owner.ID)
}

// edge is one wait for one holder.
type edge struct {
	from, to party
	path     string
}

func renderGraph(s *Server, _ node, c caller, w io.Writer) error {
	var d *describer
	labels := map[party]string{}
	var edges []edge
	seen := map[edge]bool{}
	begin := func(now lockengine.Instant) { d = s.describer(now, s.readerOf(c)) }
	s.engine.Each(begin, func(*lockengine.Lock) {}, func(r *lockengine.Waiting, blockers []*lockengine.Lock) {
		from := partyOf(r.Who, r.Owner)
		labels[from] = d.process(r.Who, r.Since).label()
		for _, l := range blockers {
			to := partyOf(l.Who, l.Owner)
			if _, ok := labels[to]; !ok {
				labels[to] = d.process(l.Who, l.Since).label()
			}
			e := edge{from, to, d.path(r.Class, r.Name)}
			if !seen[e] {
				seen[e] = true
				edges = append(edges, e)
			}
		}
	})
	_, err := w.Write(dot(labels, edges))
	return err
}

func (p process) label() string { return fmt.Sprintf("%d %s", p.pid, p.command) }

// dot writes Graphviz DOT; edges on a cycle are red.
func dot(labels map[party]string, edges []edge) []byte {
	var b bytes.Buffer
	b.WriteString("digraph locks {\n\trankdir=LR;\n\tnode [shape=box];\n")
	parties := make([]party, 0, len(labels))
	for p := range labels {
		parties = append(parties, p)
	}
	slices.SortFunc(parties, func(a, b party) int {
		if a.pid != b.pid {
			return int(a.pid) - int(b.pid)
		}
		return slices.Compare([]uint64{a.owner.Session, a.owner.ID}, []uint64{b.owner.Session, b.owner.ID})
	})
	for _, p := range parties {
		fmt.Fprintf(&b, "\t%s [label=%s];\n", p, dotQuote(labels[p]))
	}
	component := components(edges)
	for _, e := range edges {
		style := ""
		if component[e.from] == component[e.to] {
			style = ", color=red, penwidth=2"
		}
		fmt.Fprintf(&b, "\t%s -> %s [label=%s%s];\n", e.from, e.to, dotQuote(e.path), style)
	}
	b.WriteString("}\n")
	return b.Bytes()
}

// dotQuote quotes a string for DOT, where only the quote needs an escape:
// backslashes come in pairs from printable already.
func dotQuote(s string) string {
	return `"` + string(bytes.ReplaceAll([]byte(s), []byte(`"`), []byte(`\"`))) + `"`
}

// components numbers the strongly connected components (Tarjan's algorithm,
// with a stack of our own: chains can be long). An edge is on a cycle exactly
// when both ends are in one component.
func components(edges []edge) map[party]int {
	next := map[party][]party{}
	var order []party
	for _, e := range edges {
		for _, p := range []party{e.from, e.to} {
			if _, ok := next[p]; !ok {
				next[p] = nil
				order = append(order, p)
			}
		}
		next[e.from] = append(next[e.from], e.to)
	}
	t := tarjan{next: next, index: map[party]int{}, low: map[party]int{}, component: map[party]int{}}
	for _, p := range order {
		if t.index[p] == 0 {
			t.visit(p)
		}
	}
	return t.component
}

type tarjan struct {
	next       map[party][]party
	index, low map[party]int
	component  map[party]int
	open       []party // visited, not yet in a component
}

type frame struct {
	p party
	i int // next successor to look at
}

func (t *tarjan) visit(root party) {
	stack := []frame{t.enter(root)}
	for len(stack) > 0 {
		f := &stack[len(stack)-1]
		if f.i < len(t.next[f.p]) {
			q := t.next[f.p][f.i]
			f.i++
			if t.index[q] == 0 {
				stack = append(stack, t.enter(q))
			} else if t.component[q] == 0 {
				t.low[f.p] = min(t.low[f.p], t.index[q])
			}
			continue
		}
		t.leave(f.p)
		stack = stack[:len(stack)-1]
		if len(stack) > 0 {
			up := stack[len(stack)-1].p
			t.low[up] = min(t.low[up], t.low[f.p])
		}
	}
}

func (t *tarjan) enter(p party) frame {
	t.index[p] = len(t.index) + 1
	t.low[p] = t.index[p]
	t.open = append(t.open, p)
	return frame{p: p}
}

// leave closes p's component when p is its root.
func (t *tarjan) leave(p party) {
	if t.low[p] != t.index[p] {
		return
	}
	for {
		q := t.open[len(t.open)-1]
		t.open = t.open[:len(t.open)-1]
		t.component[q] = t.index[p]
		if q == p {
			return
		}
	}
}
