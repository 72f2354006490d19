//! The disk of the run folder: room and kind.

use std::path::Path;

use fieldtune::config::Config;
use fieldtune::replay::{Budget, Layout};

use super::{Finding, Level, Root};

/// Room beside the replay: checkpoints, metrics, bundles.
const RESERVE: u64 = 256 << 20;

pub(super) fn look(root: &Root<'_>, config: &Config) -> Vec<Finding> {
    let folder = std::path::absolute(&config.run.directory).unwrap_or_else(|_| config.run.directory.clone());
    vec![space(config, &folder), kind(root, &folder)]
}

fn space(config: &Config, folder: &Path) -> Finding {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let free = rustix::fs::statvfs(existing).map_or(0, |s| s.f_bavail * s.f_frsize);
    let frames = config.camera.shape();
    let needed = Budget::new(Layout::from(&config.robot.spaces), config.replay.capacity, frames).disk();
    Finding::new(
        "disk space",
        Level::mend_unless(free > needed + RESERVE),
        format!("{} MB free, the replay needs {} MB", free >> 20, needed >> 20),
        "free space, or lower replay.capacity",
    )
}

/// One line of /proc/self/mountinfo: device, mount point, file system.
fn mount<'a>(mounts: &'a str, folder: &Path) -> Option<(&'a str, &'a str, &'a str)> {
    let fields = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split_whitespace();
        let device = before.nth(2)?;
        Some((device, before.nth(1)?, after.split_whitespace().next()?))
    });
    fields.filter(|(_, point, _)| folder.starts_with(point)).max_by_key(|(_, point, _)| point.len())
}

fn kind(root: &Root<'_>, folder: &Path) -> Finding {
    let mounts = root.read("proc/self/mountinfo").unwrap_or_default();
    let Some((device, _, file_system)) = mount(&mounts, folder) else {
        return Finding::new("disk type", Level::Advice, "unknown", "look at it with df -T");
    };
    let block = format!("sys/dev/block/{device}");
    // A partition has no queue of its own.
    let queue = |file: &str| {
        root.read(&format!("{block}/queue/{file}")).or_else(|| root.read(&format!("{block}/../queue/{file}")))
    };
    let name = root.read(&format!("{block}/uevent")).unwrap_or_default();
    let name = name.lines().find_map(|line| line.strip_prefix("DEVNAME=")).unwrap_or(device).to_owned();
    let (level, what, remedy) = match file_system {
        "tmpfs" | "ramfs" => (Level::Mend, "memory: gone after a restart", "choose a run.directory on a disk"),
        "nfs" | "nfs4" | "cifs" | "9p" | "fuse.sshfs" => (
            Level::Mend,
            "on another machine: a lost network stops the recorder",
            "choose a run.directory on a local disk",
        ),
        _ if name.starts_with("mmcblk") => (
            Level::Advice,
            "SD card or eMMC: slow to sync and soon worn",
            "choose a run.directory on an NVMe disk, or raise replay.sync_every_s",
        ),
        _ if queue("rotational").as_deref() == Some("1") => (
            Level::Advice,
            "rotating disk: a sync takes tens of milliseconds",
            "choose a run.directory on a solid-state disk",
        ),
        _ => (Level::Ok, "local", ""),
    };
    Finding::new("disk type", level, format!("{file_system} on {name}, {what}"), remedy)
}
