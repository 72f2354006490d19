//! Promise: the doctor sees what is wrong with a machine, and names the command that mends it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A machine as files.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    /// A Jetson on which everything is as it should be.
    fn perfect() -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        machine.put(
            "proc/self/limits",
            "Limit Soft Hard Units\nMax locked memory unlimited unlimited bytes\nMax realtime priority 90 90\n",
        );
        machine.put("proc/self/status", "CapEff:\t0000000000000000\n");
        machine.put("proc/sys/kernel/sched_rt_runtime_us", "950000\n");
        machine.put("proc/meminfo", "MemTotal: 7802928 kB\nMemFree: 100 kB\nMemAvailable: 6100000 kB\n");
        machine.put("proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0");
        machine.put("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n");
        machine.put("sys/class/thermal/thermal_zone0/temp", "51250\n");
        machine.put("proc/version", "Linux version 5.15.148-rt-tegra (buildd) #1 SMP PREEMPT_RT\n");
        machine.put("proc/self/mountinfo", "20 1 259:1 / / rw shared:1 - ext4 /dev/nvme0n1p1 rw\n");
        machine.put("sys/dev/block/259:1/queue/rotational", "0\n");
        machine.put("sys/dev/block/259:1/uevent", "MAJOR=259\nMINOR=1\nDEVNAME=nvme0n1p1\n");
        machine.put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        machine.put("sys/devices/system/cpu/isolated", "3\n");
        machine.put("etc/nv_tegra_release", "# R36\n");
        machine.put("var/lib/nvpmodel/status", "pmode:0000\n");
        for cpu in 0..4 {
            for (file, value) in
                [("scaling_governor", "performance"), ("scaling_min_freq", "2201600"), ("cpuinfo_max_freq", "2201600")]
            {
                machine.put(&format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/{file}"), value);
            }
        }
        machine.put("proc/irq/17/effective_affinity_list", "0\n");
        machine.put("proc/irq/18/smp_affinity_list", "0-2\n");
        machine.put("dev/cpu_dma_latency", "");
        machine.put("dev/nvhost-gpu", "");
        machine.put("usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1", "");
        machine
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Findings by check, and whether the doctor is content.
    fn ask(&self, settings: &str) -> (BTreeMap<String, Value>, bool) {
        let config = self.root.path().join("robot.toml");
        let run = self.root.path().join("runs/one");
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = format!(
            "[run]\ndirectory = \"{}\"\n[policy]\nbundle = \"{}\"\n[replay]\noffline = \"\"\nsampler = \"online\"\ncapacity = 1024\n{settings}",
            run.display(),
            repository.join("models/pendulum-cql").display()
        );
        std::fs::write(&config, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_fieldtune"))
            .args(["doctor", "--json", "--root"])
            .arg(self.root.path())
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let named = findings.into_iter().map(|f| (f["check"].as_str().unwrap().to_owned(), f)).collect();
        (named, output.status.success())
    }
}

const PINNED: &str = "[realtime]\ncpu = 3\n";

#[test]
fn a_perfect_machine_gets_no_finding() {
    let (findings, content) = Machine::perfect().ask(PINNED);
    for (check, finding) in &findings {
        assert_eq!(finding["level"], "ok", "{check}: {finding}");
    }
    assert!(content);
    assert_eq!(findings.len(), 19, "{:?}", findings.keys());
}

/// What is changed, the check that sees it, how bad it is, a word of what was found, and of the remedy.
type Flaw = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

const FLAWS: &[Flaw] = &[
    (
        "proc/self/limits",
        "Max realtime priority 0 0\nMax locked memory unlimited",
        "real-time priority",
        "mend",
        "rtprio limit 0",
        "limits.d",
    ),
    (
        "proc/self/limits",
        "Max realtime priority 90\nMax locked memory 8388608 8388608",
        "locked memory",
        "mend",
        "8388608",
        "memlock unlimited",
    ),
    ("proc/sys/kernel/sched_rt_runtime_us", "500000", "real-time throttling", "mend", "500000", "sysctl"),
    (
        "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
        "schedutil",
        "frequency governor",
        "mend",
        "cpu2: schedutil",
        "scaling_governor",
    ),
    ("var/lib/nvpmodel/status", "pmode:0002\nfmode:quiet", "power mode (nvpmodel)", "mend", "0002", "nvpmodel -m 0"),
    (
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_min_freq",
        "729600",
        "clocks (jetson_clocks)",
        "mend",
        "cpu1",
        "jetson_clocks",
    ),
    (
        "proc/version",
        "Linux version 6.1.0 #1 SMP PREEMPT_DYNAMIC",
        "kernel",
        "advice",
        "not PREEMPT_RT",
        "real-time kernel",
    ),
    (
        "sys/kernel/mm/transparent_hugepage/enabled",
        "[always] madvise never",
        "huge pages",
        "advice",
        "[always]",
        "madvise",
    ),
    (
        "sys/class/thermal/thermal_zone0/temp",
        "93000\n",
        "temperature",
        "advice",
        "cpu-thermal at 93.0",
        "thermal.slow_c",
    ),
    (
        "proc/meminfo",
        "MemTotal: 2000000 kB\nMemAvailable: 3000 kB\n",
        "memory",
        "mend",
        "Jetson Orin Nano Developer Kit has 1954 MB, which its GPU shares",
        "learner.batch_size",
    ),
    ("sys/devices/system/cpu/isolated", "1-2", "processor isolation", "advice", "isolated: 1-2", "isolcpus=3"),
    ("proc/irq/17/effective_affinity_list", "2-3", "interrupts", "advice", "17", "smp_affinity_list"),
    ("proc/self/mountinfo", "20 1 0:5 / / rw - tmpfs tmpfs rw", "disk type", "mend", "tmpfs", "run.directory"),
    ("proc/self/mountinfo", "20 1 0:5 / / rw - nfs4 host:/x rw", "disk type", "mend", "another machine", "local disk"),
    ("sys/dev/block/259:1/uevent", "DEVNAME=mmcblk0p1", "disk type", "advice", "SD card", "NVMe"),
    ("sys/dev/block/259:1/queue/rotational", "1", "disk type", "advice", "rotating", "solid-state"),
];

#[test]
fn idle_states_that_cannot_be_held_off_are_named() {
    let machine = Machine::perfect();
    std::fs::remove_file(machine.root.path().join("dev/cpu_dma_latency")).unwrap();
    let (findings, _) = machine.ask(PINNED);
    let finding = &findings["idle states"];
    assert_eq!(finding["level"], "mend", "{finding}");
    assert!(finding["remedy"].as_str().unwrap().contains("udev"), "{finding}");
}

#[test]
fn every_flaw_is_found_and_comes_with_its_remedy() {
    for (path, text, check, level, found, remedy) in FLAWS {
        let machine = Machine::perfect();
        machine.put(path, text);
        let (findings, content) = machine.ask(PINNED);
        let finding = &findings[*check];
        assert_eq!(finding["level"], *level, "{path}: {finding}");
        assert!(finding["found"].as_str().unwrap().contains(found), "{path}: {finding}");
        assert!(finding["remedy"].as_str().unwrap().contains(remedy), "{path}: {finding}");
        assert_eq!(content, *level != "mend", "{path}: advice does not count");
        let others = findings.iter().filter(|(name, f)| *name != check && f["level"] != "ok").count();
        assert_eq!(others, 0, "{path}: {findings:?}");
    }
}

#[test]
fn capabilities_do_as_well_as_limits() {
    let machine = Machine::perfect();
    machine.put("proc/self/limits", "Max realtime priority 0 0\nMax locked memory 0 0\n");
    assert!(!machine.ask("").1);
    // CAP_IPC_LOCK (14) and CAP_SYS_NICE (23).
    machine.put("proc/self/status", "CapEff:\t0000000000804000\n");
    assert!(machine.ask("").1);
}

#[test]
fn a_configuration_that_does_not_fit_is_found() {
    let machine = Machine::perfect();
    let (findings, content) = machine.ask("[robot]\naddress = \"nobody.sock\"\n");
    assert!(!content);
    assert_eq!(findings["robot"]["level"], "mend", "{}", findings["robot"]);
    let (findings, content) = machine
        .ask("[robot]\nspaces = { observation = [\"cos_theta\", \"sin_theta\", \"other\"], action = [\"torque\"] }\n");
    assert!(!content && findings["policy bundle"]["found"].as_str().unwrap().contains("other"), "{findings:?}");
}
