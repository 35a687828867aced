//! `offloop doctor`: what this machine lets clusters do.

use super::Stop;
use super::control::place;
use crate::error::{Error, ErrorKind};
use crate::sys::cgroup::Cgroup;
use crate::sys::{cpu, probe};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;
use std::io::Write;

/// The kernel that all of it is made for.
const KERNEL: (u32, u32) = (5, 10);
/// Fds that a cluster of many workers needs, and its clients.
const FILES: u64 = 4096;
/// Connections that wait for a worker.
const QUEUE: u64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Finding {
    Good,
    /// It works, and not as well as it could.
    Weak,
    /// Clusters do not run.
    Bad,
}

impl Finding {
    fn name(self) -> &'static str {
        match self {
            Finding::Good => "ok",
            Finding::Weak => "weak",
            Finding::Bad => "bad",
        }
    }
}

pub(super) fn command() -> Command {
    Command::new("doctor")
        .about("Look at what this machine lets clusters do: kernel, limits, directories")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object a line"))
}

fn file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// `6.1.0-18-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn findings() -> Vec<(&'static str, Finding, String)> {
    let mut out = Vec::new();
    let weak = |good: bool| if good { Finding::Good } else { Finding::Weak };
    let release = file("/proc/sys/kernel/osrelease");
    let new = version(&release).is_none_or(|found| found >= KERNEL);
    out.push((
        "kernel",
        if new { Finding::Good } else { Finding::Bad },
        format!("{release}; {}.{} or newer is needed", KERNEL.0, KERNEL.1),
    ));
    for row in probe::probes() {
        let text = if row.available { "there".to_owned() } else { format!("not there (Linux {} has it): {}", row.since, row.fallback) };
        out.push((row.name, weak(row.available), text));
    }
    let group = Cgroup::current();
    let quota = group.cpu_quota().map_or_else(|| "no quota".to_owned(), |quota| format!("a quota of {quota:.2}"));
    out.push(("cores", Finding::Good, format!("{} usable: affinity, and {quota}", cpu::usable_cores())));
    let memory = group.memory_limit().map_or_else(|| "no limit".to_owned(), |n| format!("a limit of {} MiB", n >> 20));
    out.push(("memory", Finding::Good, format!("{memory} of the control group")));
    let limits = file("/proc/self/limits");
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    if let Some(files) = files {
        out.push((
            "open files",
            weak(files >= FILES),
            format!("{files}; a server has one per connection: `ulimit -n`, or LimitNOFILE= of systemd"),
        ));
    }
    let queue: u64 = file("/proc/sys/net/core/somaxconn").parse().unwrap_or(0);
    out.push(("waiting connections", weak(queue >= QUEUE), format!("{queue} per socket: net.core.somaxconn")));
    let first = file("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if !first.is_empty() {
        out.push(("ports", Finding::Good, format!("from {first} on are everybody's: net.ipv4.ip_unprivileged_port_start")));
    }
    let smaps = std::fs::metadata("/proc/self/smaps_rollup").is_ok();
    out.push(("/proc", weak(smaps), (if smaps { "tells memory" } else { "tells no memory: --max-memory sees none" }).to_owned()));
    match place::ready() {
        Ok(path) => out.push(("control sockets", Finding::Good, format!("in {}", path.display()))),
        Err(e) => out.push(("control sockets", Finding::Bad, e.to_string())),
    }
    out
}

pub(super) fn run(args: &ArgMatches, out: &mut dyn Write) -> Result<(), Stop> {
    let findings = findings();
    for (name, finding, text) in &findings {
        if args.get_flag("json") {
            writeln!(out, "{}", json!({"name": name, "finding": finding.name(), "text": text}))?;
        } else {
            writeln!(out, "{:<5} {name}: {text}", finding.name())?;
        }
    }
    if findings.iter().any(|(_, finding, _)| *finding == Finding::Bad) {
        return Err(Error::new(ErrorKind::Unsupported, "clusters do not run here").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels_are_compared_by_number() {
        for (release, found) in [("5.10.0", Some((5, 10))), ("6.1.0-18-amd64", Some((6, 1))), ("6.18-rc3+", Some((6, 18))), ("x", None)] {
            assert_eq!(version(release), found);
        }
        assert!(version("5.9.16").is_some_and(|found| found < KERNEL) && version("5.10").is_some_and(|found| found >= KERNEL));
    }
}
