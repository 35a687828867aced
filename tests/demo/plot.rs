//! The plot: one SVG, drawn by hand. Above, every `/health` request as a dot; below, the loop's delay by percentile. One column per host.

use crate::{Pair, Run, time};
use offloop_tests::spread::Spread;
use std::fmt::Write;

const INLINE: &str = "#d1495b";
const OFFLOADED: &str = "#00798c";
const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const GRID: &str = "#e4e7eb";
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 28.0;
const GAP: f64 = 26.0;
const TOP: f64 = 168.0;
const DOTS: f64 = 290.0;
const CURVES: f64 = 230.0;
const BETWEEN: f64 = 92.0;
const HEIGHT: f64 = TOP + DOTS + BETWEEN + CURVES + 74.0;
/// The percentile at the right end of the lower row.
const LAST: f64 = 0.999;

/// A panel's place on the page, and its logarithmic scale of milliseconds.
struct Panel {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    low: f64,
    high: f64,
}

impl Panel {
    fn at(&self, ms: f64) -> f64 {
        let share = (ms.max(self.low).log10() - self.low.log10()) / (self.high.log10() - self.low.log10());
        self.y + self.height * (1.0 - share.min(1.0))
    }

    fn grid(&self, out: &mut String, labels: bool) {
        let mut ms = self.low;
        while ms <= self.high * 1.001 {
            let y = self.at(ms);
            let _ = writeln!(out, r#"<line x1="{:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{GRID}"/>"#, self.x, self.x + self.width);
            if labels {
                let text = if ms >= 1e3 { format!("{} s", ms / 1e3) } else { format!("{ms} ms") };
                label(out, self.x - 10.0, y + 4.0, "end", FAINT, 12, &text);
            }
            ms *= 10.0;
        }
    }
}

fn label(out: &mut String, x: f64, y: f64, anchor: &str, colour: &str, size: u32, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{text}</text>"#);
}

fn strong(out: &mut String, x: f64, y: f64, anchor: &str, colour: &str, size: u32, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    // Drawn twice: the white edge keeps a label readable on top of dots and curves, and `paint-order` is not known to every viewer.
    for (paint, edge) in [("#fff", r##" stroke="#fff" stroke-width="5" stroke-linejoin="round""##), (colour, "")] {
        let _ = writeln!(
            out,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{paint}" font-size="{size}" font-weight="700"{edge}>{text}</text>"#
        );
    }
}

/// Draws the whole page.
#[must_use]
pub(crate) fn draw(pairs: &[Pair], about: &str, seconds: f64) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="Inter, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"##
    );
    strong(&mut out, LEFT, 46.0, "start", INK, 26, "The same work, on the event loop and off it");
    label(&mut out, LEFT, 72.0, "start", FAINT, 15, &format!("{about},"));
    label(
        &mut out,
        LEFT,
        92.0,
        "start",
        FAINT,
        15,
        "beside 200 GET /health per second. Each server ran twice under the same load, on the machine that drew this.",
    );
    for (x, colour, word) in
        [(LEFT + 6.0, INLINE, "inline: the loop does the work itself"), (LEFT + 336.0, OFFLOADED, "offloaded: an offloop pool does it")]
    {
        let _ = writeln!(out, r#"<circle cx="{x}" cy="118" r="6" fill="{colour}"/>"#);
        strong(&mut out, x + 14.0, 123.0, "start", colour, 14, word);
    }
    let every = |of: fn(&Run) -> Vec<f64>| Spread::new(pairs.iter().flat_map(|p| [of(&p.inline), of(&p.offloaded)]).flatten().collect());
    let health_high = decade(every(|r| r.health.iter().map(|h| h.1).collect()).max());
    let late_high = decade(every(|r| r.late.clone()).max());
    let width = (WIDTH - LEFT - RIGHT - GAP * (pairs.len().max(1) as f64 - 1.0)) / pairs.len().max(1) as f64;
    for (i, pair) in pairs.iter().enumerate() {
        let x = LEFT + i as f64 * (width + GAP);
        let dots = Panel { x, y: TOP, width, height: DOTS, low: 0.1, high: health_high };
        let curves = Panel { x, y: TOP + DOTS + BETWEEN, width, height: CURVES, low: 0.01, high: late_high };
        strong(&mut out, x, TOP - 14.0, "start", INK, 18, &pair.title);
        label(&mut out, x + width, TOP - 14.0, "end", FAINT, 13, "GET /health: one dot per request");
        dots.grid(&mut out, i == 0);
        for (run, colour) in [(&pair.inline, INLINE), (&pair.offloaded, OFFLOADED)] {
            scatter(&mut out, &dots, run, colour, seconds);
        }
        for (run, colour) in [(&pair.inline, INLINE), (&pair.offloaded, OFFLOADED)] {
            let p99 = run.health_spread().at(0.99);
            let y = dots.at(p99);
            let _ = writeln!(
                out,
                r#"<line x1="{x:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="1.5" stroke-dasharray="5 4"/>"#,
                x + width
            );
            strong(&mut out, x + width - 6.0, y - 7.0, "end", colour, 15, &format!("p99 {}", time(p99)));
        }
        for s in 0..=(seconds.floor() as u32) {
            label(
                &mut out,
                x + width * f64::from(s) / seconds,
                TOP + DOTS + 18.0,
                "middle",
                FAINT,
                12,
                &if s == 0 { "0 s".into() } else { s.to_string() },
            );
        }
        label(&mut out, x, curves.y - 16.0, "start", FAINT, 13, "event-loop delay by percentile");
        curves.grid(&mut out, i == 0);
        percentiles(&mut out, &curves, pair);
    }
    label(
        &mut out,
        LEFT,
        HEIGHT - 14.0,
        "start",
        FAINT,
        12,
        "Latency counts from the moment a request was due. Loop delay: lateness of a 1 ms timer, the same in every host. Logarithmic scales.",
    );
    out.push_str("</svg>\n");
    out
}

/// The next power of ten.
fn decade(ms: f64) -> f64 {
    10f64.powf(ms.max(1.0).log10().ceil())
}

fn scatter(out: &mut String, panel: &Panel, run: &Run, colour: &str, seconds: f64) {
    // One path of zero-length strokes with round ends: a tenth of the size of as many circles.
    let _ = write!(out, r#"<path fill="none" stroke="{colour}" stroke-opacity="0.55" stroke-width="3.2" stroke-linecap="round" d=""#);
    for (at, ms) in &run.health {
        let _ = write!(out, "M{:.1} {:.1}h0", panel.x + panel.width * at / seconds, panel.at(*ms));
    }
    out.push_str("\"/>\n");
}

fn percentiles(out: &mut String, panel: &Panel, pair: &Pair) {
    // The distance from 100 % on a logarithmic scale: the tail gets the room that it takes in a user's life.
    let at = |q: f64| panel.x + panel.width * (1.0 - q).log10() / (1.0 - LAST).log10();
    for (q, text) in [(0.0, "p0"), (0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (LAST, "p99.9")] {
        let (x, bottom) = (at(q), panel.y + panel.height);
        let _ = writeln!(out, r#"<line x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{bottom:.1}" stroke="{GRID}"/>"#, panel.y);
        let anchor = if q == 0.0 {
            "start"
        } else if q == LAST {
            "end"
        } else {
            "middle"
        };
        label(out, x, bottom + 18.0, anchor, FAINT, 12, text);
    }
    for (run, colour) in [(&pair.inline, INLINE), (&pair.offloaded, OFFLOADED)] {
        let spread = Spread::new(run.late.clone());
        let points: Vec<String> = (0..=300)
            .map(|i| 1.0 - 10f64.powf((1.0 - LAST).log10() * f64::from(i) / 300.0))
            .map(|q| format!("{:.1},{:.1}", at(q), panel.at(spread.at(q))))
            .collect();
        let _ = writeln!(
            out,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-linejoin="round"/>"#,
            points.join(" ")
        );
    }
    for (run, colour) in [(&pair.inline, INLINE), (&pair.offloaded, OFFLOADED)] {
        let p99 = Spread::new(run.late.clone()).at(0.99);
        let (x, y) = (at(0.99), panel.at(p99));
        let _ = writeln!(out, r##"<circle cx="{x:.1}" cy="{y:.1}" r="5" fill="{colour}" stroke="#fff" stroke-width="2"/>"##);
        strong(out, x - 10.0, y - 9.0, "end", colour, 15, &time(p99));
    }
}
