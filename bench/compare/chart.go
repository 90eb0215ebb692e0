package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// chart is a bar for each verdict, on a logarithmic scale from 1/4 to 8, with its
// interval and what is wanted.
func chart(list []verdict) string {
	const rowH, left, width = 22, 430, 420
	x := func(r float64) float64 {
		return left + width*(math.Log2(min(max(r, 0.25), 8))+2)/5
	}
	var b strings.Builder
	h := rowH*len(list) + 50
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", left+width+60, h)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for _, r := range []float64{0.25, 0.5, 1, 2, 4, 8} {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="24" y2="%d" stroke="#ccc"/><text x="%.1f" y="16" text-anchor="middle">%g</text>`+"\n", x(r), x(r), h-10, x(r), r)
	}
	for i, v := range list {
		y := 30 + i*rowH
		colour := "#4a7ebb"
		if v.word() == missed {
			colour = "#c0504d"
		}
		from, to := min(x(1), x(v.Ratio)), max(x(1), x(v.Ratio))
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y+12, html.EscapeString(v.Cell+" / "+v.Peer))
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="14" fill="%s"/>`, from, y, to-from, colour)
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="black"/>`, x(v.Low), x(v.High), y+7, y+7)
		if v.Wanted > 0 {
			fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#2a2" stroke-width="2"/>`, x(v.Wanted), x(v.Wanted), y-2, y+16)
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%.2f</text>`+"\n", max(to, x(v.High))+6, y+12, v.Ratio)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
