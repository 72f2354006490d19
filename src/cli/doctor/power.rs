//! Memory and temperature: what the learner may take of this machine.

use fieldtune::config::{Config, ThermalConfig};
use fieldtune::learner::{Dims, LearnerMemory};
use fieldtune::policy::AnyBundle;
use fieldtune::replay::{Budget, Layout};
use fieldtune::telemetry::{Zones, board, meminfo, unified_memory};

use super::{Finding, Level, Root};

/// The hottest sensor, beside the temperature from which the learner is slowed.
pub(super) fn temperature(root: &Root<'_>, thermal: &ThermalConfig) -> Finding {
    let zones = Zones::open(&root.path(&thermal.zones.to_string_lossy()), &thermal.ignore);
    let (cool, found) = match zones.hottest() {
        Some((sensor, celsius)) => (celsius < thermal.slow_c, format!("{sensor} at {celsius:.1} degrees")),
        None => (true, "no sensor: heat does not slow the learner".into()),
    };
    Finding::new(
        "temperature",
        Level::advise_unless(cool),
        found,
        format!("cool the board: from {:.0} degrees on the learner is slowed (thermal.slow_c)", thermal.slow_c),
    )
}

/// What replay and learner need beside what the board has.
pub(super) fn memory(root: &Root<'_>, config: &Config) -> Finding {
    let text = root.read("proc/meminfo").unwrap_or_default();
    let model = root.read("proc/device-tree/model").unwrap_or_default();
    let (Some(total), Some(available)) = (meminfo(&text, "MemTotal:"), meminfo(&text, "MemAvailable:")) else {
        return Finding::new("memory", Level::Advice, "unknown", "look at it with free -m");
    };
    let machine = board(&model).unwrap_or("this machine");
    let shared = if unified_memory(machine) { ", which its GPU shares" } else { "" };
    let replay = Budget::new(Layout::from(&config.robot.spaces), config.replay.capacity, None);
    let bundle = AnyBundle::load(&config.policy.bundle).ok();
    let weights = bundle.as_ref().and_then(|bundle| bundle.ensemble().ok()).filter(|_| config.learner.enabled);
    let learner = weights.map_or(0, |bundle| {
        LearnerMemory::new(bundle.weights(), Dims::from(&config.robot.spaces), &config.learner).total()
    });
    let mb = |bytes: u64| bytes.div_ceil(1 << 20);
    let fits = replay.tables.saturating_add(learner) <= available && replay.disk() <= total;
    Finding::new(
        "memory",
        Level::mend_unless(fits),
        format!(
            "{machine} has {} MB{shared}, {} MB of them free; the learner needs {} MB, the replay {} MB and as page cache up to {} MB",
            mb(total),
            mb(available),
            mb(learner),
            mb(replay.tables),
            mb(replay.disk())
        ),
        "lower replay.capacity, learner.members or learner.batch_size; stop the desktop: sudo systemctl set-default multi-user.target",
    )
}
