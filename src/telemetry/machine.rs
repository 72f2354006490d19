//! What the machine says of itself.

/// Bytes that a line like `MemTotal:       16384 kB` of `/proc/meminfo` names; `field` is its beginning, with the colon.
pub fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Name of the board from the text of `/proc/device-tree/model`, which ends with a zero byte.
pub fn board(model: &str) -> Option<&str> {
    Some(model.trim_end_matches('\0').trim()).filter(|name| !name.is_empty())
}

/// Whether processor and GPU of the board share one memory, as on every Jetson.
pub fn unified_memory(board: &str) -> bool {
    ["Jetson", "Orin", "Xavier", "Thor"].iter().any(|name| board.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_and_device_tree() {
        let text = "MemTotal:        7802928 kB\nMemFree:  5 kB\nMemAvailable:    6123456 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(7_802_928 * 1024));
        assert_eq!(meminfo(text, "MemAvailable:"), Some(6_123_456 * 1024));
        assert_eq!((meminfo(text, "Swap:"), meminfo("MemTotal: many kB", "MemTotal:")), (None, None));
        let name = board("NVIDIA Jetson Orin Nano Developer Kit\0").unwrap();
        assert_eq!(name, "NVIDIA Jetson Orin Nano Developer Kit");
        assert!(unified_memory(name) && !unified_memory("Raspberry Pi 5 Model B Rev 1.0"));
        assert_eq!(board("\0"), None);
    }
}
