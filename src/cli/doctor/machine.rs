//! Rights, clocks and processors of the machine, from `/proc` and `/sys`.

use super::{Finding, Level, Root};

/// Everything about the machine; `cpu` is the control thread's processor, -1 when none is configured.
pub(super) fn look(root: &Root<'_>, cpu: i32) -> Vec<Finding> {
    let mut findings = vec![rights(root), memlock(root), throttle(root), governor(root), idle_states(root)];
    findings.extend(jetson(root));
    findings.extend([kernel(root), huge_pages(root), isolation(root, cpu), interrupts(root, cpu)]);
    findings
}

/// Soft value of `NAME` in /proc/self/limits, and whether the capability is effective.
fn limit(root: &Root<'_>, name: &str, capability: u32) -> (String, bool) {
    let limits = root.read("proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let soft = line.split_whitespace().next().unwrap_or("unknown").to_owned();
    let status = root.read("proc/self/status").unwrap_or_default();
    let effective =
        status.lines().find_map(|l| l.strip_prefix("CapEff:")).and_then(|v| u64::from_str_radix(v.trim(), 16).ok());
    (soft, effective.is_some_and(|bits| bits >> capability & 1 == 1))
}

fn rights(root: &Root<'_>) -> Finding {
    let (soft, capable) = limit(root, "Max realtime priority", 23);
    let ok = capable || soft.parse::<u32>().is_ok_and(|priority| priority >= 80);
    Finding::new(
        "real-time priority",
        Level::mend_unless(ok),
        if capable { "CAP_SYS_NICE".into() } else { format!("rtprio limit {soft}") },
        "echo '@realtime - rtprio 90' | sudo tee -a /etc/security/limits.d/fieldtune.conf; sudo groupadd -f realtime; sudo usermod -aG realtime $USER; log in again",
    )
}

fn memlock(root: &Root<'_>) -> Finding {
    let (soft, capable) = limit(root, "Max locked memory", 14);
    Finding::new(
        "locked memory",
        Level::mend_unless(capable || soft == "unlimited"),
        if capable { "CAP_IPC_LOCK".into() } else { format!("memlock limit {soft}") },
        "echo '@realtime - memlock unlimited' | sudo tee -a /etc/security/limits.d/fieldtune.conf; log in again",
    )
}

fn throttle(root: &Root<'_>) -> Finding {
    let found = root.read("proc/sys/kernel/sched_rt_runtime_us").unwrap_or_default();
    Finding::new(
        "real-time throttling",
        Level::mend_unless(found.parse::<i64>().is_ok_and(|us| !(0..900_000).contains(&us))),
        format!("sched_rt_runtime_us = {found}"),
        "sudo sysctl -w kernel.sched_rt_runtime_us=950000",
    )
}

/// Names of the processors.
fn processors(root: &Root<'_>) -> Vec<String> {
    let numbered = |name: &String| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
    root.names("sys/devices/system/cpu").into_iter().filter(numbered).collect()
}

fn frequency(root: &Root<'_>, cpu: &str, what: &str) -> Option<String> {
    root.read(&format!("sys/devices/system/cpu/{cpu}/cpufreq/{what}"))
}

fn governor(root: &Root<'_>) -> Finding {
    let governors: Vec<(String, String)> = processors(root)
        .into_iter()
        .filter_map(|cpu| frequency(root, &cpu, "scaling_governor").map(|governor| (cpu, governor)))
        .collect();
    let others: Vec<String> =
        governors.iter().filter(|(_, g)| g != "performance").map(|(cpu, g)| format!("{cpu}: {g}")).collect();
    let found = match (governors.is_empty(), others.is_empty()) {
        (true, _) => "none (fixed frequency or virtual machine)".into(),
        (_, true) => "performance".into(),
        _ => others.join(", "),
    };
    Finding::new(
        "frequency governor",
        Level::mend_unless(others.is_empty()),
        found,
        "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor   (Jetson: sudo jetson_clocks)",
    )
}

/// Whether idle processors can be kept from sleeping deeply during a run. Looks by opening the file; nothing is written.
fn idle_states(root: &Root<'_>) -> Finding {
    let opened = std::fs::File::options().write(true).open(root.path("dev/cpu_dma_latency"));
    Finding::new(
        "idle states",
        Level::mend_unless(opened.is_ok()),
        opened.map_or_else(|error| format!("/dev/cpu_dma_latency: {error}"), |_| "can be held off".into()),
        "echo 'KERNEL==\"cpu_dma_latency\", GROUP=\"realtime\", MODE=\"0660\"' | sudo tee /etc/udev/rules.d/60-fieldtune.rules; sudo udevadm control --reload; sudo udevadm trigger",
    )
}

/// Power mode and clocks of a Jetson.
fn jetson(root: &Root<'_>) -> Vec<Finding> {
    if !root.exists("etc/nv_tegra_release") {
        return Vec::new();
    }
    let status = root.read("var/lib/nvpmodel/status").unwrap_or_default();
    let mode = status.lines().find_map(|line| line.strip_prefix("pmode:")).map(|mode| mode.trim().to_owned());
    let unlimited = mode.as_deref().and_then(|mode| mode.parse::<u32>().ok()) == Some(0);
    let slow: Vec<String> = processors(root)
        .into_iter()
        .filter(|cpu| frequency(root, cpu, "scaling_min_freq") != frequency(root, cpu, "cpuinfo_max_freq"))
        .collect();
    vec![
        Finding::new(
            "power mode (nvpmodel)",
            Level::mend_unless(unlimited),
            mode.map_or("unknown".into(), |mode| format!("mode {mode}; 0 has no limit")),
            "sudo nvpmodel -m 0",
        ),
        Finding::new(
            "clocks (jetson_clocks)",
            Level::mend_unless(slow.is_empty()),
            if slow.is_empty() { "at their highest".into() } else { format!("{} may slow down", slow.join(", ")) },
            "sudo jetson_clocks   (after every start: sudo systemctl enable a unit that runs it)",
        ),
    ]
}

fn kernel(root: &Root<'_>) -> Finding {
    let version = root.read("proc/version").unwrap_or_default();
    let preempt = root.read("sys/kernel/realtime").as_deref() == Some("1") || version.contains("PREEMPT_RT");
    let release = version.split_whitespace().nth(2).unwrap_or("unknown").to_owned();
    Finding::new(
        "kernel",
        Level::advise_unless(preempt),
        if preempt { format!("{release}, PREEMPT_RT") } else { format!("{release}, not PREEMPT_RT") },
        "install a real-time kernel (Debian: sudo apt install linux-image-rt-$(dpkg --print-architecture); Jetson: sudo apt install nvidia-l4t-rt-kernel)",
    )
}

fn huge_pages(root: &Root<'_>) -> Finding {
    let found = root.read("sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_else(|| "none".into());
    Finding::new(
        "huge pages",
        Level::advise_unless(!found.contains("[always]")),
        found,
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )
}

/// `0-2,5` as numbers.
fn list(text: &str) -> Vec<i32> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let mut ends = part.trim().splitn(2, '-').map(str::parse::<i32>);
        if let Some(Ok(first)) = ends.next() {
            let last = ends.next().and_then(Result::ok).unwrap_or(first);
            numbers.extend(first..=last);
        }
    }
    numbers
}

fn isolation(root: &Root<'_>, cpu: i32) -> Finding {
    let isolated = root.read("sys/devices/system/cpu/isolated").unwrap_or_default();
    let ok = if cpu < 0 { !list(&isolated).is_empty() } else { list(&isolated).contains(&cpu) };
    let last = processors(root).len().saturating_sub(1);
    let wanted = usize::try_from(cpu).unwrap_or(last);
    let found = if isolated.is_empty() { "no processor is isolated".into() } else { format!("isolated: {isolated}") };
    Finding::new(
        "processor isolation",
        Level::advise_unless(ok),
        if cpu < 0 { found } else { format!("{found}; realtime.cpu = {cpu}") },
        format!(
            "add isolcpus={wanted} nohz_full={wanted} rcu_nocbs={wanted} to the kernel's command line, restart, and set realtime.cpu = {wanted}"
        ),
    )
}

/// Interrupts that may come to the control thread's processor.
fn interrupts(root: &Root<'_>, cpu: i32) -> Finding {
    if cpu < 0 {
        return Finding::new("interrupts", Level::Ok, "not looked at: realtime.cpu is -1", "");
    }
    let mut there = Vec::new();
    for irq in root.names("proc/irq") {
        let at = |file: &str| root.read(&format!("proc/irq/{irq}/{file}")).filter(|text| !text.is_empty());
        if at("effective_affinity_list").or_else(|| at("smp_affinity_list")).is_some_and(|on| list(&on).contains(&cpu))
        {
            there.push(irq);
        }
    }
    let found = if there.is_empty() {
        format!("none on processor {cpu}")
    } else {
        format!("{} on processor {cpu}: {}", there.len(), there.join(", "))
    };
    let others: Vec<String> = processors(root)
        .iter()
        .filter_map(|p| p[3..].parse::<i32>().ok())
        .filter(|p| *p != cpu)
        .map(|p| p.to_string())
        .collect();
    Finding::new(
        "interrupts",
        Level::advise_unless(there.is_empty()),
        found,
        format!(
            "sudo systemctl stop irqbalance; for i in {}; do echo {} | sudo tee /proc/irq/$i/smp_affinity_list; done",
            there.join(" "),
            others.join(",")
        ),
    )
}
