package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// What the chart shows, and how, in pixels.
var (
	chartRows   = []string{"setlk", "ofd", "flock", "handover", "clients8", "ranges10000", "mkdir", "hold"}
	chartColors = map[string]string{
		tmpfs: "#9e9e9e", libfuse: "#1f77b4", libfuseMT: "#9ecae1", stock: "#bcbd22", noop: "#e6c85c", noJournal: "#f4a582", lockfs: "#c0392b",
	}
)

const (
	chartLeft   = 270 // the labels
	chartWidth  = 470 // the bars
	chartRight  = 60  // the figure behind the longest
	chartTop    = 92
	barHeight   = 11
	groupGap    = 12
	chartBottom = 40
)

// chart draws the rows on one CPU as bars, on a logarithmic scale.
func chart(host machine, all []measurement) string {
	var shown []measurement
	low, high := math.Inf(1), 0.0
	for _, name := range chartRows {
		for _, m := range all {
			if m.series.name != "one" || m.row.name != name {
				continue
			}
			shown = append(shown, m)
			for p := range m.samples {
				c, _ := m.cost(p)
				low, high = min(low, c), max(high, c)
			}
		}
	}
	if len(shown) == 0 {
		low, high = 1e3, 1e4
	}
	first, last := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	x := func(ns float64) float64 {
		return chartLeft + chartWidth*(math.Log10(ns)-first)/max(last-first, 1)
	}
	group := barHeight*len(peers) + groupGap
	height := chartTop + group*len(shown) + chartBottom
	width := chartLeft + chartWidth + chartRight

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	text(&b, 10, 22, "start", 15, "What a lock costs, in microseconds: client and server on one CPU")
	text(&b, 10, 40, "start", 11, host.String()+"; logarithmic, shorter is better")
	legend(&b)
	for decade := first; decade <= last; decade++ {
		at := x(math.Pow(10, decade))
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#ddd"/>`+"\n", at, at, chartTop-6, height-chartBottom+4)
		text(&b, at, height-chartBottom+20, "middle", 11, fmt.Sprintf("%g", math.Pow(10, decade-3)))
	}
	for i, m := range shown {
		top := chartTop + i*group
		text(&b, chartLeft-10, top+group/2, "end", 12, m.row.label)
		for j, p := range peers {
			c, ok := m.cost(p.name)
			if !ok {
				continue
			}
			y := top + j*barHeight
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", chartLeft, y, x(c)-chartLeft, barHeight-1, chartColors[p.name])
			text(&b, x(c)+4, y+barHeight-2, "start", 9, micro(c))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func legend(b *strings.Builder) {
	at := 10
	for _, p := range peers {
		fmt.Fprintf(b, `<rect x="%d" y="54" width="11" height="11" fill="%s"/>`+"\n", at, chartColors[p.name])
		text(b, float64(at+16), 64, "start", 11, p.label)
		at += 28 + 6*len(p.label)
	}
}

func text(b *strings.Builder, x float64, y int, anchor string, size int, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="%s" font-size="%d">%s</text>`+"\n", x, y, anchor, size, html.EscapeString(s))
}
