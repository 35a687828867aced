//! Text for people and for collectors.

use super::histogram::{Histogram, Totals};
use super::pool::{PoolMetrics, Sums};
use super::{Counter, Gauge};
use std::fmt::Write as _;

/// What [`export`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text exposition format 0.0.4: counters, gauges, histograms in seconds. Pools of one kind and name are
    /// summed, because a label set may occur once only.
    Prometheus,
    /// One JSON object; every pool has its own entry; durations in nanoseconds.
    Json,
}

/// Powers of two of nanoseconds that end a Prometheus bucket: 1 µs, 4 µs … 69 s. They are ends of our buckets, so the
/// counts are exact.
const BOUNDS: std::ops::RangeInclusive<u32> = 10..=36;
const BOUNDS_STEP: usize = 2;

/// The metrics of every live pool of this process.
#[must_use]
pub fn export(format: Format) -> String {
    let pools = PoolMetrics::live();
    match format {
        Format::Prometheus => prometheus(&pools.iter().map(|p| (p.kind(), p.name(), p.sums())).collect::<Vec<_>>(), true),
        Format::Json => json(&pools.iter().map(|p| (p.kind(), p.name(), p.age_ns(), p.sums())).collect::<Vec<_>>()),
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Label values: backslash, quote and line feed are escaped, nothing else.
pub(crate) fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The two lines before a family's rows.
pub(crate) fn head(out: &mut String, metric: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
}

/// Those of one kind and name are summed, in the order of the first of them. `gauges`: with what the pools measure now.
pub(super) fn prometheus(pools: &[(&str, &str, Sums)], gauges: bool) -> String {
    let mut merged: Vec<(&str, &str, String, Sums)> = Vec::new();
    for (kind, name, sums) in pools {
        match merged.iter_mut().find(|m| (m.0, m.1) == (*kind, *name)) {
            Some(m) => m.3.merge(sums),
            None => {
                let labels = format!("pool=\"{}\",kind=\"{}\"", escape_label(name), escape_label(kind));
                merged.push((kind, name, labels, sums.clone()));
            }
        }
    }
    let mut out = String::new();
    if merged.is_empty() {
        return out;
    }
    for c in Counter::ALL {
        head(&mut out, c.metric(), "counter", c.help());
        for (_, _, labels, sums) in &merged {
            let _ = writeln!(out, "{}{{{labels}}} {}", c.metric(), sums.counters[*c as usize]);
        }
    }
    head(&mut out, "offloop_worker_busy_seconds_total", "counter", "Time that workers spent in tasks, all workers together.");
    for (_, _, labels, sums) in &merged {
        let _ = writeln!(out, "offloop_worker_busy_seconds_total{{{labels}}} {}", seconds(sums.busy_ns));
    }
    for g in Gauge::ALL.iter().filter(|_| gauges) {
        head(&mut out, g.metric(), "gauge", g.help());
        for (_, _, labels, sums) in &merged {
            let _ = writeln!(out, "{}{{{labels}}} {}", g.metric(), sums.gauges[*g as usize]);
        }
    }
    let wait: fn(&Sums) -> &Totals = |s| &s.wait;
    let run: fn(&Sums) -> &Totals = |s| &s.run;
    let series = [
        ("offloop_task_wait_seconds", "Time from a task's submission to its start.", wait),
        ("offloop_task_run_seconds", "Time from a task's start to its outcome.", run),
    ];
    for (metric, help, of) in series {
        head(&mut out, metric, "histogram", help);
        for (_, _, labels, sums) in &merged {
            let totals = of(sums);
            for power in BOUNDS.step_by(BOUNDS_STEP) {
                let bound = 1u64 << power;
                let _ = writeln!(out, "{metric}_bucket{{{labels},le=\"{}\"}} {}", seconds(bound), totals.count_below(bound));
            }
            let count = totals.count();
            let _ = writeln!(out, "{metric}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{metric}_sum{{{labels}}} {}", seconds(totals.sum_ns));
            let _ = writeln!(out, "{metric}_count{{{labels}}} {count}");
        }
    }
    for (metric, help, of) in [
        ("offloop_task_wait_max_seconds", "Longest time from a task's submission to its start.", wait),
        ("offloop_task_run_max_seconds", "Longest time from a task's start to its outcome.", run),
    ] {
        head(&mut out, metric, "gauge", help);
        for (_, _, labels, sums) in &merged {
            let _ = writeln!(out, "{metric}{{{labels}}} {}", seconds(of(sums).max_ns));
        }
    }
    out
}

/// A JSON string (RFC 8259).
pub(crate) fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn json_histogram(h: &Histogram) -> String {
    format!(
        "{{\"count\":{},\"mean_ns\":{},\"p50_ns\":{},\"p90_ns\":{},\"p99_ns\":{},\"max_ns\":{}}}",
        h.count, h.mean_ns, h.p50_ns, h.p90_ns, h.p99_ns, h.max_ns
    )
}

fn json(pools: &[(&str, &str, u64, Sums)]) -> String {
    let mut out = format!("{{\"pid\":{},\"pools\":[", std::process::id());
    for (i, (kind, name, age_ns, sums)) in pools.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        let _ =
            write!(out, "{{\"kind\":{},\"name\":{},\"age_ns\":{age_ns},\"busy_ns\":{}", json_string(kind), json_string(name), sums.busy_ns);
        for c in Counter::ALL {
            let _ = write!(out, ",\"{}\":{}", c.key(), sums.counters[*c as usize]);
        }
        for g in Gauge::ALL {
            let _ = write!(out, ",\"{}\":{}", g.key(), sums.gauges[*g as usize]);
        }
        let (wait, run) = (json_histogram(&sums.wait.histogram()), json_histogram(&sums.run.histogram()));
        let _ = write!(out, ",\"wait\":{wait},\"run\":{run}}}");
    }
    out.push_str("]}");
    out
}

#[cfg(test)]
mod tests {
    use super::super::histogram::bucket_of;
    use super::*;

    fn sample() -> Sums {
        let mut s = Sums::new();
        s.counters = [10, 7, 1, 0, 2, 0, 3, 0, 0];
        s.gauges = [4, 2, 2, 8, 0];
        s.busy_ns = 1_500_000_000;
        for (ns, n) in [(500, 1), (2_000, 2), (3_000_000, 3)] {
            s.wait.buckets[bucket_of(ns)] += n;
            s.wait.sum_ns += ns * n;
            s.wait.max_ns = ns;
        }
        s
    }

    /// Checks the grammar of the text format: HELP, TYPE, then samples of that family only; no series twice.
    fn check_exposition(text: &str) -> Vec<(String, String, f64)> {
        let mut family = (String::new(), String::new());
        let mut seen = std::collections::HashSet::new();
        let mut families = std::collections::HashSet::new();
        let mut samples = Vec::new();
        assert!(text.is_empty() || text.ends_with('\n'));
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, what) = help.split_once(' ').expect("help text");
                assert!(!what.is_empty() && families.insert(name.to_owned()), "{line}");
                let kind =
                    lines.next().and_then(|l| l.strip_prefix("# TYPE ")).and_then(|l| l.strip_prefix(name)).expect("TYPE follows HELP");
                assert!([" counter", " gauge", " histogram"].contains(&kind), "{kind}");
                family = (name.to_owned(), kind.trim().to_owned());
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("value");
            let (name, labels) = series.split_once('{').expect("labels");
            let suffix = name.strip_prefix(family.0.as_str()).unwrap_or_else(|| panic!("{line} in family {}", family.0));
            let allowed: &[&str] = if family.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(allowed.contains(&suffix), "{line}");
            if family.1 == "counter" {
                assert!(name.ends_with("_total"), "{line}");
            }
            assert!(seen.insert(series.to_owned()), "twice: {series}");
            samples.push((name.to_owned(), labels.strip_suffix('}').expect("}").to_owned(), value.parse().expect("number")));
        }
        samples
    }

    #[test]
    fn prometheus_text_is_exact() {
        let text = prometheus(&[("thread", "img", sample())], true);
        check_exposition(&text);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# HELP offloop_tasks_submitted_total Tasks that the pool accepted.");
        assert_eq!(lines[1], "# TYPE offloop_tasks_submitted_total counter");
        assert_eq!(lines[2], "offloop_tasks_submitted_total{pool=\"img\",kind=\"thread\"} 10");
        for want in [
            "offloop_worker_busy_seconds_total{pool=\"img\",kind=\"thread\"} 1.5",
            "offloop_workers_max{pool=\"img\",kind=\"thread\"} 8",
            "# TYPE offloop_task_wait_seconds histogram",
            "offloop_task_wait_seconds_bucket{pool=\"img\",kind=\"thread\",le=\"0.000001024\"} 1",
            "offloop_task_wait_seconds_bucket{pool=\"img\",kind=\"thread\",le=\"0.000004096\"} 3",
            "offloop_task_wait_seconds_bucket{pool=\"img\",kind=\"thread\",le=\"0.004194304\"} 6",
            "offloop_task_wait_seconds_bucket{pool=\"img\",kind=\"thread\",le=\"+Inf\"} 6",
            "offloop_task_wait_seconds_sum{pool=\"img\",kind=\"thread\"} 0.0090045",
            "offloop_task_wait_seconds_count{pool=\"img\",kind=\"thread\"} 6",
            "offloop_task_run_seconds_count{pool=\"img\",kind=\"thread\"} 0",
            "offloop_task_wait_max_seconds{pool=\"img\",kind=\"thread\"} 0.003",
        ] {
            assert!(lines.contains(&want), "{want}\n{text}");
        }
    }

    #[test]
    fn prometheus_buckets_are_cumulative() {
        let samples = check_exposition(&prometheus(&[("thread", "img", sample())], true));
        let buckets: Vec<f64> = samples.iter().filter(|s| s.0 == "offloop_task_wait_seconds_bucket").map(|s| s.2).collect();
        assert_eq!(buckets.len(), 15);
        assert!(buckets.is_sorted());
    }

    #[test]
    fn pools_of_one_name_are_summed_and_names_are_escaped() {
        let odd = "a\"b\\c\nd{e}";
        let text = prometheus(&[("thread", odd, sample()), ("process", odd, sample()), ("thread", odd, sample())], true);
        let samples = check_exposition(&text);
        let labels = "pool=\"a\\\"b\\\\c\\nd{e}\",kind=\"thread\"";
        let submitted: Vec<_> = samples.iter().filter(|s| s.0 == "offloop_tasks_submitted_total").map(|s| (s.1.as_str(), s.2)).collect();
        assert_eq!(submitted, [(labels, 20.0), ("pool=\"a\\\"b\\\\c\\nd{e}\",kind=\"process\"", 10.0)]);
    }

    #[test]
    fn without_pools_the_text_is_empty() {
        assert_eq!(prometheus(&[], true), "");
        assert!(json(&[]).ends_with("\"pools\":[]}"));
    }

    #[test]
    fn json_keeps_every_pool_and_escapes_names() {
        let text = json(&[("thread", "a\"\\\n\u{1}é", 12, sample()), ("thread", "b", 13, Sums::new())]);
        assert!(
            text.contains("{\"kind\":\"thread\",\"name\":\"a\\\"\\\\\\n\\u0001é\",\"age_ns\":12,\"busy_ns\":1500000000,\"submitted\":10,"),
            "{text}"
        );
        assert!(
            text.contains("\"timed_out\":0,\"cancelled\":2,\"lost\":0,\"rejected\":3,\"retried\":0,\"recycled\":0,\"queued\":4,"),
            "{text}"
        );
        assert!(text.contains("\"wait\":{\"count\":6,\"mean_ns\":1500750,\"p50_ns\":"), "{text}");
        assert!(text.ends_with("\"run\":{\"count\":0,\"mean_ns\":0,\"p50_ns\":0,\"p90_ns\":0,\"p99_ns\":0,\"max_ns\":0}}]}"), "{text}");
        #[cfg(feature = "json")]
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["pools"][0]["name"], "a\"\\\n\u{1}é");
    }
}
