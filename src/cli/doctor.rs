//! `fieldtune doctor`.

use std::path::{Path, PathBuf};

use fieldtune::policy::checks;

/// Check this machine for real-time work. Every finding comes with the command that mends it.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Also check a configuration: policy, ONNX Runtime, offline data, disk space.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Root of the file system to look at, for tests.
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    found: String,
    remedy: &'static str,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let mut findings = vec![rights(&args.root), memlock(&args.root), governor(&args.root), throttle(&args.root)];
    if let Some(path) = &args.config {
        findings.extend(configuration(path)?);
    }
    if args.json {
        say!("{}", serde_json::to_string(&findings)?);
    } else {
        for f in &findings {
            say!("{} {:<22} {}", if f.ok { "ok  " } else { "MEND" }, f.check, f.found);
            if !f.ok {
                say!("     {:<22} {}", "", f.remedy);
            }
        }
    }
    Ok(findings.iter().all(|f| f.ok))
}

fn read(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok()
}

/// `Max NAME  soft hard unit` of /proc/self/limits, and whether CAP_SYS_NICE / CAP_IPC_LOCK is effective.
fn limit(root: &Path, name: &str, capability: u32) -> (String, bool) {
    let limits = read(root, "proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|l| l.starts_with(name)).unwrap_or_default();
    let soft = line[name.len().min(line.len())..].split_whitespace().next().unwrap_or("unknown").to_owned();
    let status = read(root, "proc/self/status").unwrap_or_default();
    let effective =
        status.lines().find_map(|l| l.strip_prefix("CapEff:")).and_then(|v| u64::from_str_radix(v.trim(), 16).ok());
    (soft, effective.is_some_and(|bits| bits >> capability & 1 == 1))
}

fn rights(root: &Path) -> Finding {
    let (soft, capable) = limit(root, "Max realtime priority", 23);
    let ok = capable || soft.parse::<u32>().is_ok_and(|p| p >= 80);
    Finding {
        check: "real-time priority",
        ok,
        found: if capable { "CAP_SYS_NICE".into() } else { format!("rtprio limit {soft}") },
        remedy: "echo '@realtime - rtprio 90' | sudo tee /etc/security/limits.d/fieldtune.conf, join the group, log in again",
    }
}

fn memlock(root: &Path) -> Finding {
    let (soft, capable) = limit(root, "Max locked memory", 14);
    let ok = capable || soft == "unlimited";
    Finding {
        check: "locked memory",
        ok,
        found: if capable { "CAP_IPC_LOCK".into() } else { format!("memlock limit {soft}") },
        remedy: "echo '@realtime - memlock unlimited' | sudo tee -a /etc/security/limits.d/fieldtune.conf, log in again",
    }
}

fn governor(root: &Path) -> Finding {
    let found = read(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").map(|g| g.trim().to_owned());
    let ok = found.as_deref().is_none_or(|g| g == "performance");
    Finding {
        check: "frequency governor",
        ok,
        found: found.unwrap_or_else(|| "none (fixed frequency or virtual machine)".into()),
        remedy: "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor   (Jetson: sudo jetson_clocks)",
    }
}

fn throttle(root: &Path) -> Finding {
    let found = read(root, "proc/sys/kernel/sched_rt_runtime_us").unwrap_or_default().trim().to_owned();
    let ok = found.parse::<i64>().is_ok_and(|us| !(0..900_000).contains(&us));
    Finding {
        check: "real-time throttling",
        ok,
        found: format!("sched_rt_runtime_us = {found}"),
        remedy: "sudo sysctl -w kernel.sched_rt_runtime_us=950000",
    }
}

fn configuration(path: &Path) -> anyhow::Result<Vec<Finding>> {
    let config = fieldtune::config::load(path, &[])?;
    let mut findings = Vec::new();
    let bundle = fieldtune::policy::Bundle::load(&config.policy.bundle)
        .and_then(|b| Ok(checks::names(&b.manifest().description.spaces, &config.robot.spaces).map(|()| b)?));
    findings.push(Finding {
        check: "policy bundle",
        ok: bundle.is_ok(),
        found: bundle.as_ref().map_or_else(ToString::to_string, |_| config.policy.bundle.display().to_string()),
        remedy: "fieldtune policy verify FOLDER says more; choose another policy.bundle",
    });
    if let Ok(bundle) = bundle {
        let prepared = fieldtune::policy::prepare(&bundle.weights().actor, &config.robot.spaces, &config.policy);
        findings.push(Finding {
            check: "inference engine",
            ok: prepared.is_ok(),
            found: prepared.map_or_else(|e| e.to_string(), |p| p.report.to_string()),
            remedy: "tools/setup-native fetches ONNX Runtime; then policy.onnxruntime = \".native/libonnxruntime.so\"",
        });
    }
    let offline = fieldtune::runtime::open_offline(&config);
    findings.push(Finding {
        check: "offline data",
        ok: offline.is_ok(),
        found: offline.map_or_else(
            |e| e.to_string(),
            |s| s.map_or("none".into(), |s| format!("{} transitions", s.transitions())),
        ),
        remedy: "fieldtune data inspect FILE says more; choose another replay.offline",
    });
    findings.push(disk(&config));
    Ok(findings)
}

fn disk(config: &fieldtune::config::Config) -> Finding {
    let folder = config.run.directory.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let free = rustix::fs::statvfs(folder).map_or(0, |s| s.f_bavail * s.f_frsize);
    let spaces = &config.robot.spaces;
    let record = fieldtune::replay::Layout {
        observation_dim: spaces.observation_dim(),
        action_dim: spaces.action_dim(),
        schema_hash: 0,
    };
    let needed = config.replay.capacity * record.record_size() as u64;
    Finding {
        check: "disk space",
        ok: free > needed + (256 << 20),
        found: format!("{} MB free, the replay needs {} MB", free >> 20, needed >> 20),
        remedy: "free space, or lower replay.capacity",
    }
}
